"""The trust table of the README, from the results of the tests marked `trust(row)`.

    python -m pytest -m "slow or trust" --trust assets/trust.json     # hours on two cores
    python -m tests.trust_table assets/trust.json --readme README.md

Results are gathered: a run that tried some rows replaces those and keeps the others, each with its own date.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = "space-trust/1"
ROWS = {
    1: ("greedy output is that of a cache-free argmax loop, 11 architectures, float64", "330 runs × 32 tokens", "3,080 × 48"),
    2: ("the same with forced drafts: right, wrong at j, right at random", "164 runs", "704"),
    3: ("float32 and bfloat16 part only at near-ties", "33 runs each", "308 each"),
    4: ("no row sees what it must not", "110 rows", "1,001"),
    5: ("the cache after any steps, rejections and crops", "20 × 30", "200 × 30"),
    6: ("sampling by exact enumeration", "110 pairs", "500, both rules"),
    7: ("sampling end to end, chi-square", "9,000 draws", "200,000"),
    8: ("end of text at every slot, budgets, the context's last places", "k = 1..8", "k = 1..8"),
    9: ("unicode split over steps, three kinds of tokenizers", "180 strings", "2,100"),
    10: ("hostile text as tokens, in a browser", "20 tokens", "200"),
    11: ("raw requests of any content", "60", "500"),
    12: ("clients that leave mid-stream", "6", "50"),
    13: ("overload", "40 at a queue of 8", "and an open queue, which overflows"),
    14: ("visitors do not see each other", "10 pairs", "100"),
    15: ("kill −9 in training, resumed to the bit", "3 kills", "30"),
    16: ("corrupt checkpoints", "10 at random, 11 chosen", "100"),
    17: ("tokenizer, model and manifest of different origin", "13", "13"),
    18: ("prompts at the cap, beyond it, empty, blank", "8, both decoders", "8"),
    19: ("imports run one way; modules keep no state", "all", "all"),
    20: ("planted faults", "the checks' own, in one process", "all, each in a copy"),
}  # fmt: skip
BEGIN, END = "<!-- trust -->", "<!-- /trust -->"
MOST = 120
"""Characters of figures in a row of the table."""


def write(path: Path, ran: dict[int, list[tuple[str, str, float, dict[str, Any]]]]) -> None:
    """Add what tests found to a result file. `ran`: of each row name, outcome, seconds and figures."""
    import torch
    import transformers

    rows = read(path)["rows"] if path.is_file() else {}
    for row, tests in ran.items():
        figures: dict[str, Any] = {}
        for _, _, _, found in tests:
            figures |= found
        rows[str(row)] = {
            "date": datetime.now(UTC).date().isoformat(),
            "tests": len(tests),
            "passed": sum(outcome == "passed" for _, outcome, _, _ in tests),
            "failed": [name for name, outcome, _, _ in tests if outcome == "failed"],
            "seconds": round(sum(seconds for _, _, seconds, _ in tests), 1),
            "figures": figures,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
    result = {"format": FORMAT, "rows": dict(sorted(rows.items(), key=lambda item: int(item[0])))}
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text(encoding="utf-8"))
    if result.get("format") != FORMAT:
        raise SystemExit(f"{path} is no result of the trust tests")
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown; a row that was not tried says so."""
    lines = ["| # | what | always | slow tier | last result |", "|---:|---|---|---|---|"]
    for number, (what, default, slow) in ROWS.items():
        lines.append(
            f"| {number} | {what} | {default} | {slow} | {outcome(result['rows'].get(str(number)))} |"
        )
    return "\n".join(lines)


def outcome(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not in this file"
    verdict = "**failed**" if row["failed"] else f"{row['passed']} of {row['tests']} passed"
    figures = "; ".join(f"{name} {value}" for name, value in row["figures"].items()).replace("|", "\\|")
    if len(figures) > MOST:
        figures = figures[:MOST].rpartition(";")[0] + "; …"
    return f"{row['date']}: {verdict}" + (f" ({figures})" if figures else "")


def fill(readme: str, drawn: str) -> str:
    """The README with its table drawn anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the README has no {BEGIN} … {END}")
    return f"{before}{begin}\n{drawn}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.trust_table")
    parser.add_argument("result", type=Path)
    parser.add_argument("--readme", type=Path, metavar="README.md", help="fill its table; else print it")
    options = parser.parse_args(arguments)
    drawn = table(read(options.result))
    if options.readme is None:
        print(drawn)
    else:
        options.readme.write_text(fill(options.readme.read_text(encoding="utf-8"), drawn), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
