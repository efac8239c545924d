"""Write `purify_audit/images/digits/digits.npz`, the bundled images, from scikit-learn's copy.

Run from the repository root: `python models/make_digits.py`. The same bytes come out every time:
`x` uint8 [1797, 8, 8] in 0..16 and `y` uint8 [1797], in scikit-learn's order, not compressed.
"""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "purify_audit" / "images" / "digits" / "digits.npz"


def main() -> None:
    """Write the file and print its SHA-256."""
    digits = load_digits()
    np.savez(TARGET, x=digits.images.astype(np.uint8), y=digits.target.astype(np.uint8))
    print(f"{hashlib.sha256(TARGET.read_bytes()).hexdigest()}  {TARGET.name}")


if __name__ == "__main__":
    main()
