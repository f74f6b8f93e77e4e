"""Instance Data Condensation (arXiv 2505.21099) for image super-resolution, as a batch job on Ray."""

__version__ = "0.1.0"
