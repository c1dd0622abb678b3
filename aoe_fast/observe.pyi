import numpy as np

CLIENT: np.dtype[np.void]
BOUNDS: list[float]
