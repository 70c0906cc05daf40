"""Frames without a WCS: an installed solver looks at them and says where on the sky they are.

A frame whose only fault is that no WCS is in its header is not lost: programs that recognise the
stars in an image find one.  `frames` tells the story: for each such frame the solution that lies
beside it is taken (`cache`), or else the frame is turned into a plain `picture` and shown to one of
the `programs`, with `hints` from its header and, if that fails, without; what comes back is checked
and brought back to the frame's own pixels (`solution`).

A solver is a process of its own (`child`), which `--memory` does not count.
"""

from zmrs.solving.frames import solve_frames
from zmrs.solving.programs import Solver, find_solver

__all__ = ["Solver", "find_solver", "solve_frames"]
