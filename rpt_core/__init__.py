"""Reinforcement Pre-Training (arXiv 2506.08007): the rooms of the pipeline, in the order data flows through them."""
