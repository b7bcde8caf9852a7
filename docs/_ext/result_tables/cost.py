"""Tables of the page docs/results/cost.md."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from result_tables.shared import NONE, markdown_table, read_json, small_print


def overhead() -> str:
    """What deferral adds to time and memory."""
    rows = []
    drawn = "_cpu_drawn_in_step"
    for name in ("501_2d_cpu", "511_2d_cpu", "004_3d_fullres_cpu", f"501_2d{drawn}", f"004_3d_fullres{drawn}"):
        content = read_json(f"overhead_{name}.json")
        ratios, machine = content["ratios"], content["machine"]
        cells = (ratios.get(key) for key in ("step", "loader", "prediction", "memory"))
        where = ", experts drawn in the step" if name.endswith(drawn) else ""
        rows.append(
            (
                content["what"].removesuffix(" patch as planned") + where,
                f"`{content['trainer']}`",
                *(NONE if ratio is None else _rounded(ratio) for ratio in cells),
                f"{machine['device']}, torch {machine['torch']}, {content['date']}",
            )
        )
    header = ("what", "trainer", "training step", "data loader", "prediction", "peak memory", "machine, date")
    return markdown_table(header, rows)


def networks() -> str:
    """What deferral adds to a training step of other networks, relative to their own trainers."""
    names = {
        "plain": "PlainConvUNet",
        "resenc_m": "ResidualEncoderUNet, plans ResEncM",
        "primus_s": "Primus-S",
        "swin_unetr": "SwinUNETR of MONAI",
    }
    rows = []
    for name, words in names.items():
        content = read_json(f"networks_{name}.json")
        ratios, machine = content["ratios"], content["machine"]
        measured = f"{machine['device']}, torch {machine['torch']}, {content['date']}"
        rows.append(
            (words, f"`{content['trainer']}`", *(_rounded(ratios[key]) for key in ("step", "memory")), measured)
        )
    return markdown_table(("network", "trainer", "training step", "peak memory", "machine, date"), rows)


def memory() -> str:
    """What an evaluation takes."""
    rows = []
    for name in ("24x4194304", "1x100000000"):
        content = read_json(f"evaluation_memory_{name}.json")
        machine = content["machine"]
        rows.append(
            (
                content["what"],
                f"{content['memory_mib']['peak'] / 1024:.1f} GiB",
                *(f"{value:.1f} s" for value in content["seconds_of_one_core"].values()),
                f"{machine['device']}, numpy {machine['numpy']}, {content['date']}",
            )
        )
    header = ("what", "peak memory", "risk-coverage", "a ranking", "the oracle", "machine, date")
    return markdown_table(header, rows)


def large_case() -> str:
    """What one large case takes in an evaluation and in the review."""
    content, rows = read_json("large_case.json"), []
    for shape, found in content["sizes"].items():
        evaluation, review = found["evaluate"], found["review"]
        took = (review["seconds"][what] for what in ("case", "next save", "submit"))
        peaks = (f"{each['peak_mib'] / 1024:.1f} GiB" for each in (evaluation, review))
        rows.append((shape.replace("x", "×"), f"{evaluation['seconds']:.0f} s", *map("{:.2g} s".format, took), *peaks))
    header = ("voxels", "evaluation", "opened", "saved", "submitted", "memory, evaluation", "memory, review")
    machine = content["machine"]
    line = f"{machine['device']}, numpy {machine['numpy']}, {content['date']}"
    return f"{markdown_table(header, rows)}\n\n{small_print(line)}"


def export() -> str:
    """What the export of a resampled case takes, relative to stock."""
    content = read_json("export.json")
    found, machine = content["found"], content["machine"]
    names = {"deferral": "one-vs-all, no limits", "budget": "a budget of 1 %", "evidence": "answers as evidence"}
    rows = [
        (
            name,
            *(_rounded(content["ratios"][kind][key]) for key in ("cpu_seconds", "peak_mib")),
            f"{found[kind]['files_mib']:.0f} MiB",
        )
        for kind, name in names.items()
    ]
    shapes = " to ".join("×".join(map(str, content[key])) for key in ("predicted", "image"))
    line = f"{shapes} voxels, {content['classes']} classes, {content['experts']} experts; {machine['device']}"
    table = markdown_table(("decision", "processor time", "peak memory", "files"), rows)
    return f"{table}\n\n{small_print(line + ', ' + content['date'])}"


def many_cases() -> str:
    """What the entry of one more case takes in folders of many."""
    content = read_json("many_cases.json")
    rows = [
        (f"{int(number):,}".replace(",", " "), f"{found['entry_ms']:.1f} ms", f"{found['read_all_seconds']:.1f} s")
        for number, found in content["cases"].items()
    ]
    table = markdown_table(("cases in the folder", "entry of one more", "reading all entries"), rows)
    return f"{table}\n\n{small_print(content['machine']['device'] + ', ' + content['date'])}"


def archive() -> str:
    """Two processes against one, and the memory of a list from many cases."""
    content = read_json("archive.json")
    rows = [
        (what, f"{times['one']:.0f} s", f"{times['two']:.0f} s", f"{times['speed_up']:.2f}")
        for what, times in content["processes"].items()
    ]
    table = markdown_table(("", "one process", "two processes", "speed-up"), rows)
    shape, listed = " x ".join(map(str, content["shape"])), content["list"]
    line = f"{content['volumes']} volumes of {shape}; {content['machine']['device']}, {content['date']}"
    regions, cases = (f"{listed[key]:,}".replace(",", " ") for key in ("regions", "cases"))
    memory = (
        f"Choosing a list from {regions} regions of {cases} cases: {listed['seconds']:.0f} s, {listed['peak_mib']} MiB "
        "at most."
    )
    return f"{table}\n\n{small_print(line)}\n\n{memory}"


def _rounded(value: float) -> str:
    """Two decimals of a number that the file holds with three: 1.045 is 1.05, which its binary form is just below."""
    return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))


TABLES = (overhead, networks, memory, large_case, export, many_cases, archive)
