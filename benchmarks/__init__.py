"""What the speed claims are measured with; no part of the package."""
