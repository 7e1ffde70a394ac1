"""Adversarial attacks on pixels, on words and on both; they know no task and no trainer."""
