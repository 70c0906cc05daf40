"""What run.py is made of.

`measuring` runs a process and looks at it from outside, `sets` simulates inputs, `contestants`
says which commands are compared, `stages` asks the Rust benchmarks, `report` writes tables, `giant`
holds the promises of memory and scratch against canvases of gigapixels.
"""
