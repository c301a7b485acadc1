"""Options of `ceg train` that stand for one field each. Imports nothing, so that --help is fast."""

SIZES = {"--seq-len": "seq_len", "--layers": "n_layers", "--width": "d_model", "--heads": "n_heads"}
"""Options of `ceg train` that give a field of `ModelShape`."""
OPTIONS = {
    "--batch": "batch",
    "--micro-batch": "micro_batch",
    "--steps": "steps",
    "--schedule": "schedule",
    "--warmup-steps": "warmup_steps",
    "--lr": "learning_rate",
    "--final-lr": "final_learning_rate",
    "--weight-decay": "weight_decay",
    "--dropout": "dropout",
    "--eval-every": "eval_every",
    "--eval-tokens": "eval_tokens",
    "--log-every": "log_every",
    "--backend": "backend",
}
"""Options that give a field of `Config`, in the order in which rules fill them in."""
