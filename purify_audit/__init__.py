"""purify-audit: is an adversarial purifier robust, or does its randomness hide the gradient?"""

__version__ = "0.1.0"
