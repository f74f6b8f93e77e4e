"""Queues of trainings that share one GPU: what ``benchmarks/campaign.py`` is made of. Nothing here needs Ray."""
