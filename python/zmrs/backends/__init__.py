"""Who computes the rows of a pass: the engine's workers, or a device beside them.

`choose` decides, before anything is read; `gpu` drives a device through a pass, `coverage` through
the work on the coverage between two, with `buffers`; `cuda` is the only module that knows CuPy;
`kernels/` is the arithmetic; `ladder` is what happens when a device fails.
Whatever computes, windows are loaded and bands are written by the same loop of the engine, on the
same plan.
"""
