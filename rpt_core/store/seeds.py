"""Random numbers keyed by what they are for, so that no draw depends on the order of the draws before it."""

import hashlib


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from a tuple of keys, e.g. ``derive_seed(seed, "rollout", step, position_id, sample)``."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
