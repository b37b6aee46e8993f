"""`recipes/bench/draft_temperature.py`: the text's own temperature, given, is no other; greedy drafts of a warm text are worse."""

from recipes.bench.draft_temperature import main


def test_a_line_for_each_temperature(capsys):
    main(["--drafts", "0,1", "--prompts", "4", "--tokens", "24"])
    cold, own = ([cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:])
    assert (own[0], own[2], own[4]) == ("1", "+0.000 ± 0.000", "+0.000 ± 0.000")
    assert cold[0] == "0"
    assert 1 <= float(cold[3]) < float(own[3])
