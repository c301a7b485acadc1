"""Settings with a name: `ceg train --preset NAME`. An option given beside it wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Sanderson et al. 2025 (arXiv 2505.04075), table IV: 64 sequences, accumulated 8 times.
    "paper": {
        "corpus": "openwebtext",
        "tokenizer": "bpe",
        "n_layers": 8,
        "n_heads": 8,
        "d_model": 512,
        "seq_len": 512,
        "dropout": 0.2,
        "batch": 64 * 8,
        "micro_batch": 64,
        "steps": 50_000,
        "warmup_steps": 1_000,
        "learning_rate": 8e-4,
        "final_learning_rate": 8e-5,
        "schedule": "cosine",
        "weight_decay": 0.1,
    },
    # Its twin for a laptop, 1/32 of the parameters in blocks: ratios of warm-up and learning rates are kept.
    "paper-mini": {
        "corpus": "mini",
        "tokenizer": "byte",
        "n_layers": 4,
        "n_heads": 4,
        "d_model": 128,
        "seq_len": 128,
        "dropout": 0.2,
        "batch": 32,
        "steps": 1_000,
        "warmup_steps": 20,
        "learning_rate": 8e-4,
        "final_learning_rate": 8e-5,
        "schedule": "cosine",
        "weight_decay": 0.1,
    },
}
