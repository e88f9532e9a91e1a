"""The greedy planner chooses what the plainest search of the same steps does, option for option."""

import random

import pytest

import rad
from rad.planning.greedy import Option, cheapest_variance, rank, total_bytes

Options = dict[str, list[Option]]
Chosen = dict[str, Option]


def plainest(options: Options, limit: int) -> Chosen | None:
    """Each start filled up by looking at every option of every layer before every step."""
    starts = [along_hulls(options, limit)]
    of_layers = [{option.sketch: option for option in found} for found in options.values()]
    for sketch in dict.fromkeys(o.sketch for found in options.values() for o in found):
        if all(sketch in of_layer for of_layer in of_layers):
            alike = [of_layer[sketch] for of_layer in of_layers]
            starts.append(dict(zip(options, alike, strict=True)))
    fitting = [start for start in starts if start and total_bytes(start) <= limit]
    return min((filled(options, start, limit) for start in fitting), key=rank, default=None)


def along_hulls(options: Options, limit: int) -> Chosen | None:
    """The steepest fall to any larger option, layer by layer; one that does not fit ends a layer's
    steps."""
    chosen = {n: min(found, key=lambda o: (o.nbytes, o.variance)) for n, found in options.items()}
    waiting = sorted(options)

    def steepest(name: str) -> tuple[float, int, Option] | None:
        now = chosen[name]
        larger = [o for o in options[name] if o.nbytes > now.nbytes and o.variance < now.variance]
        slopes = [((o.variance - now.variance) / (o.nbytes - now.nbytes), o) for o in larger]
        return min(
            ((slope, -option.nbytes, option) for slope, option in slopes),
            key=lambda each: each[:2],
            default=None,
        )

    while True:
        steps = [(step[0], name, step[2]) for name in waiting if (step := steepest(name))]
        if not steps:
            break
        _, name, option = min(steps, key=lambda each: each[:2])
        if total_bytes(chosen | {name: option}) <= limit:
            chosen[name] = option
        else:
            waiting.remove(name)
    return chosen if total_bytes(chosen) <= limit else None


def filled(options: Options, chosen: Chosen, limit: int) -> Chosen:
    """The first of the largest gains, again and again."""
    while found := gains(options, chosen, limit - total_bytes(chosen)):
        largest = max(gain for gain, _, _ in found)
        _, name, option = next(each for each in found if each[0] == largest)
        chosen = chosen | {name: option}
    return chosen


def gains(options: Options, chosen: Chosen, left: int) -> list[tuple[float, str, Option]]:
    """All single better options that fit; where there are none, larger ones of unknown use."""
    pairs = [(name, option) for name, found in options.items() for option in found]
    fitting = [(n, o) for n, o in pairs if o.nbytes - chosen[n].nbytes <= left]
    better = [(n, o) for n, o in fitting if o.variance < chosen[n].variance]
    unknown = {name for name, found in options.items() if not any(o.variance for o in found)}
    larger = [(n, o) for n, o in fitting if n in unknown and o.nbytes > chosen[n].nbytes]
    if better:
        return [(chosen[n].variance - o.variance, n, o) for n, o in better]
    return [(o.nbytes, n, o) for n, o in larger]


def instance(seed: int, tied: bool) -> tuple[Options, int]:
    """Layers with few or many options, some of them unknown; with `tied`, of equal gains."""
    of = random.Random(seed)
    layers, options = of.randint(1, 9), Options()
    for layer in of.sample(range(layers), layers):
        unknown, offered = of.random() < 0.15, range(of.randint(1, 12))
        options[f"layer {layer}"] = [
            Option(
                rad.DifferentSample((column + 1) / 100),
                of.randint(1, 8 if tied else 1000),
                0.0 if unknown else of.randint(0, 8) if tied else of.expovariate(1),
            )
            for column in of.sample(offered, len(offered))
        ]
    most = sum(max(o.nbytes for o in found) for found in options.values())
    return options, of.randint(most // 8, most)


@pytest.mark.parametrize("tied", [False, True])
def test_every_plan_is_that_of_the_plainest_search(tied: bool) -> None:
    found = []
    for seed in range(400):
        options, limit = instance(seed, tied)
        chosen = cheapest_variance(options, limit)
        assert chosen == plainest(options, limit), seed
        found.append(chosen is not None)
    assert 100 < sum(found) < 400  # both answers are met


def test_endless_variance_falls_to_a_finite_one_and_no_further() -> None:
    sizes = {1: float("inf"), 2: float("inf"), 3: 5.0}
    found = [Option(rad.DifferentSample(n / 100), n, variance) for n, variance in sizes.items()]
    assert cheapest_variance({"a": found}, 2) == {"a": found[1]}  # of equals the larger
    assert cheapest_variance({"a": found}, 3) == {"a": found[2]}


def test_no_layers_need_no_bytes() -> None:
    assert cheapest_variance({}, 0) == {}
