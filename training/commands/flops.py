"""`ceg flops`: FLOP of an arm, part by part, as we, torch and fvcore count them."""

from __future__ import annotations

import dataclasses
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import BadInput, Command, console, number, parse_budgets, print_json, refuse, single
from cegain.shapes import arms
from cegain.training.run import budget
from cegain.training.run.budget import Plan

if TYPE_CHECKING:
    from rich.console import Console

    from cegain.training.models.flops import Term


@click.command("flops", cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@single("--arm", default="baseline", metavar="NAME[+NAME...]", help="The baseline, an algorithm, or several at once.")
@single("--flops", required=True, metavar="C", help="Budget in useful FLOP; sets the shape.")
@single("--stack", default="bare", metavar="bare|modern", help="What every arm shares (bare).")
@single("--seq-len", default="128", metavar="N", help="Tokens of a sequence (128).")
@single("--vocab", default="256", metavar="N", help="Entries of the vocabulary (256, of bytes).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def flops_command(as_json: bool, **options: Any) -> None:
    """FLOP of an arm per token and part: ours, beside torch's and fvcore's count of the same model.

    Exits with 1 where a count is further than 1% from ours. Nothing is trained, and no model is held: a budget of
    1e24 takes half a minute.

    \b
    ceg flops --arm moe --flops 1e15
    ceg flops --arm sliding_window --stack modern --flops 1e24 --seq-len 4096 --vocab 50304
    """
    problems: list[str] = []
    budgets = parse_budgets(options["flops"], problems)
    if len(budgets) > 1:
        problems.append(f"--flops: one budget is needed (found {options['flops']!r}). Try 1e15.")
    sizes = {
        field: number(option, text, problems, "256", int)
        for option, field, text in (
            ("--seq-len", "seq_len", options["seq_len"]),
            ("--vocab", "vocab_size", options["vocab"]),
        )
    }
    missing = [name for name in ("torch", "fvcore") if find_spec(name) is None]
    if missing:
        problems.append(
            f"ceg flops: {' and '.join(missing)} installed (found none). Try: pip install '.[torch]' in the checkout."
        )
    fields: dict[str, Any] = {}
    arm = options["arm"]
    try:
        fields = arms.arm_shape_fields(options["stack"], arm)
        arm = arms.canonical(options["stack"], arm)
    except ValueError as error:
        problems += str(error).splitlines()
    refuse(problems)
    try:
        plan = budget.plan(budgets[0], options["stack"], fields, **sizes)
    except ValueError as error:
        raise BadInput(str(error).splitlines()) from None

    # slow to import
    from rich.console import Console

    from cegain.training.models import flops

    with Console(stderr=True).status("counting"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore's, on tracing and on what it imports
        terms = flops.count(plan.shape, plan.batch * plan.shape.seq_len)
    agrees = all(term.agrees() for term in terms.values())
    if as_json:
        print_json(_document(options["stack"], arm, budgets[0], plan, terms, agrees))
    else:
        _print(console(), options["stack"], arm, plan, terms, agrees)
    if not agrees:
        raise SystemExit(1)


def _document(
    stack: str, arm: str, asked: float, plan: Plan, terms: dict[str, Term], agrees: bool
) -> dict[str, object]:
    """Counts are FLOP per token."""
    return {
        "schema": "ceg.flops",
        "schema_version": 1,
        "stack": stack,
        "arm": arm,
        "rung_flops": asked,
        "flops": plan.flops,
        "tokens": plan.tokens,
        "batch": plan.batch,
        "steps": plan.steps,
        "shape": dataclasses.asdict(plan.shape),
        "flops_per_token": {name: term._asdict() for name, term in terms.items()},
        "agrees": agrees,
    }


def _print(console: Console, stack: str, arm: str, plan: Plan, terms: dict[str, Term], agrees: bool) -> None:
    """The shape, a line per part, and what the columns are."""
    from rich import box
    from rich.table import Table

    shape = plan.shape
    console.print(
        f"{arm} on the {stack} stack: {shape.n_layers} layers, {shape.d_model} wide, sequences of {shape.seq_len}, "
        f"vocabulary {shape.vocab_size}"
    )
    console.print(f"{plan.steps} steps of {plan.batch} sequences, {plan.tokens:.4g} tokens, {plan.flops:.4g} FLOP")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("FLOP per token", no_wrap=True)
    for column in ("useful", "scores in full", "torch", "difference", "forward", "fvcore", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, term in terms.items():
        ours = (term.useful, term.full, term.torch)
        forward = ["", "", ""]
        if name != "optimizer":
            forward = [f"{term.forward_full:.5g}", f"{term.forward_fvcore:.5g}"]
            forward.append(_difference(term.forward_fvcore, term.forward_full))
        cells = [*(f"{value:.5g}" for value in ours), _difference(term.torch, term.full), *forward]
        table.add_row(name.replace("_", " "), *cells, end_section=name == "optimizer")
    console.print(table)
    console.print(
        "useful: scores that the pattern shows, the `flops` of every record. Counters see all scores, so they"
    )
    console.print("are compared with those in full. torch: FlopCounterMode over forward pass, loss, backward pass and")
    console.print("optimizer step, on plain operations. fvcore: the forward pass, 2 per multiply-add.")
    if shape.kind == "lstm":
        console.print(
            "An LSTM is counted over a few tokens, and torch leaves out a product with its first state, zero."
        )
    console.print("All counts are within 1% of ours." if agrees else "A COUNT IS FURTHER THAN 1% FROM OURS.")


def _difference(counted: float, ours: float) -> str:
    return f"{counted / ours - 1:+.2%}" if ours else ""
