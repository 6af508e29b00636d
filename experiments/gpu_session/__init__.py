"""What a machine with one GPU is asked in a quarter of an hour: `python -m experiments.gpu_session`.

`__main__` is the clock; it imports neither torch nor anything else that must be installed. Each part is a program of
its own, `python -m experiments.gpu_session.PART`, that takes up its `Record` where it stopped.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as kdschemes sets it, here before torch is loaded
