"""What a device's installation takes on its disk."""

from tests.bench.edge.site import needed, size_bytes
from tests.bench.edge.stage import Stage
from tests.bench.report import Cell, Goal, Results, Table

MB = 1e6
LARGEST = 6


def installed(stage: Stage, results: Results) -> None:
    sizes = {extra: sizes_of(extra) for extra in ("edge", "edge-train")}
    rows: list[list[Cell]] = [
        [f"tidewheel[{extra}]", len(found), sum(found.values()) / MB]
        for extra, found in sizes.items()
    ]
    largest = sorted(sizes["edge"].items(), key=lambda one: -one[1])[:LARGEST]
    text = (
        "The files of all distributions that the extra needs, as installed, without tidewheel's "
        "own and without what Python compiles. The largest of [edge]: "
        + ", ".join(f"{name} {size / MB:.0f} MB" for name, size in largest)
        + "."
    )
    results.tables.append(Table("Installed size", text, ["", "distributions", "MB"], rows))
    heavy = {"torch", "faust-streaming", "flwr"} & sizes["edge"].keys()
    total = sum(sizes["edge"].values()) / MB
    results.goals += [
        Goal("tidewheel[edge] as installed, MB", total, at_most=195),
        Goal("of torch, faust and flwr in [edge]", len(heavy), at_most=0),
    ]


def sizes_of(extra: str) -> dict[str, int]:
    return {name: size_bytes(one) for name, one in needed(extra).items()}
