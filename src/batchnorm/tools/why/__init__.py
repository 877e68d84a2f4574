"""``batchnorm why``: experiments on real data that ask what batch normalization is good for, and an honest report.

Importing this package loads neither PyTorch, scikit-learn nor matplotlib; the modules that need them are loaded when
they are used.
"""
