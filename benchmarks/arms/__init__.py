"""Queues of trainings on one GPU, for ``benchmarks/campaign.py``. Without Ray."""
