"""`visipruner eval` on a Ray cluster: every actor holds the model, Ray Data hands out the samples.

python examples/ray_eval.py --method visipruner --method fastv --samples 100 --actors 8 --out results/

Every machine needs visipruner, the model (a folder they all reach, or "testbed") and the images under the same paths.
Tried with ray 2.60.0 on one machine with two actors.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import ray

from visipruner import specs
from visipruner.evaluation import as_markdown, summarize
from visipruner.evaluation.datasets import open_data
from visipruner.evaluation.runner import Comparison
from visipruner.evaluation.samples import Sample
from visipruner.files import write_atomic, write_json
from visipruner.models import loading as models
from visipruner.models import packaged


class Answering:
    """An actor: the model and all methods, so that methods are compared on the same machine."""

    def __init__(
        self, model: str, methods: list[str], max_new_tokens: int, samples: list[Sample], allow_download: bool = False
    ) -> None:
        models.prepare(model)
        loaded = models.load(model, dtype="auto", attn="sdpa", allow_download=allow_download)
        pruners = {spec: specs.resolve(spec, model, loaded.num_layers).pruner for spec in methods}
        self.comparison = Comparison(loaded.model, loaded.processor, pruners, max_new_tokens)
        self.samples = samples
        self.turn = 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Sample numbers to records as JSON, because their fields differ from method to method."""
        records = []
        for number in batch["id"]:
            records += map(json.dumps, self.comparison.records([self.samples[number]], self.turn))
            self.turn += 1
        return {"id": batch["id"], "record": records}


def main() -> None:
    """Prints the table of `visipruner eval`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=models.TESTBED)
    parser.add_argument("--method", action="append", metavar="SPEC", help="as `visipruner eval` takes it; repeatable")
    parser.add_argument("--data", type=Path, help="as `visipruner eval` takes it")
    parser.add_argument("--benchmark", help="what --data is, where that is not seen from its files")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--allow-download", action="store_true", help="let every actor fetch a model from the hub")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1, help="cores an actor is given")
    parser.add_argument("--out", type=Path, help="folder for rows.json, table.md and samples.jsonl")
    given = parser.parse_args()

    images = None if given.out is None else given.out / "images"
    task = open_data(given.data or packaged.data_of(given.model), given.benchmark, images)
    chosen = task.samples if given.samples is None else task.choose(given.samples, given.seed)
    task.prepare(chosen)
    # Held by the driver: reading them from elsewhere would take a core, and wait for ever where actors have all.
    numbers = ray.data.from_items([{"id": number} for number in range(len(chosen))], override_num_blocks=len(chosen))
    answered = numbers.map_batches(
        Answering,
        fn_constructor_args=(
            given.model,
            given.method or ["visipruner"],
            given.max_new_tokens,
            chosen,
            given.allow_download,
        ),
        batch_size=1,  # an actor that is free takes the next sample
        num_cpus=given.cpus,
        compute=ray.data.ActorPoolStrategy(size=given.actors),
    )
    rows = sorted(answered.take_all(), key=lambda row: int(row["id"]))
    records = [json.loads(row["record"]) for row in rows]
    summary = summarize(records, scoring=task)
    table = as_markdown(summary)
    print(table)
    if given.out is not None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_json(given.out / "rows.json", {"rows": summary})
        write_atomic(given.out / "table.md", lambda part: part.write_text(table + "\n", encoding="utf-8"))
        write_atomic(given.out / "samples.jsonl", lambda part: part.write_text(lines, encoding="utf-8"))


if __name__ == "__main__":
    main()
