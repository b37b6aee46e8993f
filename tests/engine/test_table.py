"""`recipes/bench/table.py` on the bundled model: every way has its line, AR is its own measure, and losses are marked."""

from recipes.bench.table import Speed, lines, main


def test_every_way_has_a_line(capsys):
    main(["--batches", "2", "--prompts", "70", "--tokens", "4", "--rounds", "1", "--text", "code", "--also", "1:4"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    cells = {row[2].strip().split(":")[0]: [cell.strip() for cell in row[3:]] for row in rows}
    assert list(cells) == ["*prefill*", "ar", "lossless", "auto", "lossless 1", "mix"]
    assert cells["ar"][1:4] == ["1.00", "1.00", "1.00"]
    assert all(float(cells[name][2]) >= 1 for name in ("lossless", "lossless 1", "mix"))


def test_what_is_lossless_and_slower_is_marked():
    speeds = {
        "ar": [Speed(10, 5, 1.0)] * 3,
        "lossless": [Speed(20, 5, 4.0)] * 3,
        "mix": [Speed(20, 5, 4.0), *[Speed(90, 5, 4.0)] * 2],
    }
    _, ar, lossless, mix = lines(2, 100, 0.5, speeds, lossless={"lossless"})
    assert ar == "| 2 | 100 | ar | 10 | 1.00 | 1.00 | 1.00 |  |"
    assert lossless == "| 2 | 100 | lossless | 5 | 0.50 | 2.00 | 4.00 | loses |"
    assert mix.split("|")[4:6] == [" 22 ", " 2.25 "]
