"""``mmecg encoders``: the published encoders that can be imported, their input, licence, labels and seen data."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg.encoders.registry import EncoderSpec

_EXAMPLES = """\
examples:
  mmecg encoders
  mmecg encoders ecg-fm             its neurons in order, preprocessing and contamination card
  mmecg encoders ecg-fm --json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "encoders",
        help="show the published encoders: input, licence, labels, seen data",
        description="Show the encoders that can be imported: ours, and those of packages that register some. Data that "
        "an encoder saw in training make figures on them look better than they are.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("name", nargs="?", help="show everything about this one")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is registered."""
    from mmecg.cli.output import print_json, print_table
    from mmecg.encoders.registry import available, get_encoder

    specs = [get_encoder(args.name)] if args.name else list(available().values())
    if args.json:
        print_json([spec_as_json(spec) for spec in specs])
    elif args.name:
        _print_card(specs[0])
    else:
        columns = ["name", "parameters>", "input", "features>", "labels>", "licence (code; weights)", "saw in training"]
        print_table("Encoders", columns, [_row(spec) for spec in specs])
    return 0


def spec_as_json(spec: EncoderSpec) -> dict[str, Any]:
    """Return what is known of an encoder as plain values."""
    return {
        "name": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "parameters": spec.parameters,
        "leads": list(spec.leads),
        "samples": spec.samples,
        "sampling_rate_hz": spec.sampling_rate_hz,
        "feature_dim": spec.feature_dim,
        "code_licence": spec.code_licence,
        "weights_licence": spec.weights_licence,
        "preprocessing": {name: asdict(item) for name, item in spec.preprocessing.items()},
        "seen": [asdict(item) for item in spec.seen],
        "labels": [asdict(label) for label in spec.labels],
    }


def _row(spec: EncoderSpec) -> list[str]:
    return [
        spec.name,
        f"{spec.parameters:,}",
        _input(spec),
        str(spec.feature_dim),
        str(len(spec.labels)),
        f"{spec.code_licence}; {spec.weights_licence}",
        ", ".join(item.name for item in spec.seen) or "no public set known",
    ]


def _input(spec: EncoderSpec) -> str:
    return f"{len(spec.leads)} x {spec.samples}, {spec.sampling_rate_hz:g} Hz"


def _print_card(spec: EncoderSpec) -> None:
    from mmecg.cli.output import print_table

    facts = {
        "paper": spec.paper,
        "parameters": f"{spec.parameters:,}",
        "input": f"{_input(spec)}: {', '.join(spec.leads)}",
        "features": str(spec.feature_dim),
        "licence of code": spec.code_licence,
        "licence of weights": spec.weights_licence,
    }
    print_table(spec.title, ["what", "value"], [list(item) for item in facts.items()])
    variants = {name: asdict(item) for name, item in spec.preprocessing.items()}
    options = [name for name in next(iter(variants.values())) if name != "leads"]
    rows = [[name, *(_plain(found[name]) for found in variants.values())] for name in options]
    print_table("Preprocessing, the default first", ["step", *variants], rows)
    seen = [[item.name, item.stage, item.source] for item in spec.seen]
    print_table("Saw in training", ["data", "stage", "source"], seen or [["no public set known", "", ""]])
    neurons = [
        [str(item.index), item.name, item.finding, item.relation, item.reduction, "needs an earlier ECG" * item.serial]
        for item in spec.labels
    ]
    print_table("Neurons", ["#>", "label", "finding", "relation", "segments by", ""], neurons)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
