"""The order in which candidates are confirmed: few, and none that is acceptable is missed."""

from dataclasses import replace

import pytest

from netprune.confirmation import WITHIN, Bound, Candidate, aim, image_margin, next_candidate

IMAGES, FLOOR = 5000, 0.80
MARGIN = image_margin(FLOOR, IMAGES)


def candidate(number, size, accuracy):
    """One that is expected to gain what its bound lacks."""
    return Candidate(number, size, accuracy, accuracy + MARGIN)


CANDIDATES = [
    candidate(0, 900, 0.86),
    candidate(1, 500, 0.82),
    candidate(2, 400, 0.801),
    candidate(3, 300, 0.795),
    candidate(4, 200, 0.70),
]


def walk(gain, *, most=4, candidates=CANDIDATES):
    """Confirm with a longer finetuning that gives every candidate the same; the order, and who was accepted."""
    by_number = {candidate.number: candidate for candidate in candidates}
    measured, order = {}, []
    left = most
    while (number := next_candidate(candidates, measured, FLOOR, images=IMAGES, left=left)) is not None:
        left -= 1
        candidate = by_number[number]
        mean = candidate.accuracy + gain
        measured[number] = Bound(candidate.size_bytes, mean, mean - MARGIN)
        order.append(number)
        assert len(order) <= len(candidates)
    accepted = [number for number, bound in measured.items() if bound.lower >= FLOOR]
    return order, min(accepted, key=lambda number: by_number[number].size_bytes, default=None)


def test_next_candidate_begins_with_the_smallest_feasible():
    assert next_candidate(CANDIDATES, {}, FLOOR, images=IMAGES, left=4) == 2


def test_next_candidate_after_a_larger_gain_goes_on_to_smaller_ones_below_the_floor():
    assert walk(MARGIN + 0.01) == ([2, 3], 3)


def test_next_candidate_after_a_smaller_gain_passes_over_those_that_would_fail_too():
    crowd = [candidate(10 + i, 401 + i, 0.8015 + 0.0001 * i) for i in range(20)]
    order, accepted = walk(MARGIN - 0.012, candidates=[*CANDIDATES, *crowd])
    assert accepted == 1
    assert order == [2, 1]


def test_next_candidate_after_a_smaller_gain_tries_those_that_may_still_pass_until_the_most_allowed():
    crowd = [candidate(10 + i, 401 + i, 0.8015 + 0.0001 * i) for i in range(20)]
    order, accepted = walk(MARGIN - 0.005, candidates=[*CANDIDATES, *crowd])
    assert accepted == 1
    assert order[:2] == [2, 1]
    assert len(order) == 4


@pytest.mark.parametrize(("lacking", "expected"), [(0.004, 1), (0.02, None)], ids=["may have been unlucky", "hopeless"])
def test_next_candidate_once_one_is_accepted_is_a_smaller_one_with_a_fair_chance(lacking, expected):
    candidates = [Candidate(0, 300, 0.8, 0.8 + MARGIN), Candidate(1, 200, 0.8, 0.8 + MARGIN - lacking)]
    measured = {0: Bound(300, 0.8 + MARGIN, 0.8)}
    assert next_candidate(candidates, measured, FLOOR, images=IMAGES, left=4) == expected


def test_next_candidate_weighs_what_a_smaller_one_saves_against_its_chance():
    some, much = Candidate(1, 290, 0.8, 0.8 + MARGIN), Candidate(2, 150, 0.8, 0.8 + MARGIN - 0.003)
    measured = {0: Bound(300, 0.8 + MARGIN, 0.8)}
    accepted = Candidate(0, 300, 0.8, 0.8 + MARGIN)
    assert next_candidate([accepted, some, much], measured, FLOOR, images=IMAGES, left=4) == 2


def test_next_candidate_heeds_what_those_of_much_the_same_accuracy_gained():
    # at an accuracy far above, longer finetuning lost; near the floor it gained
    candidates = [Candidate(0, 900, 0.86, 0.87), Candidate(1, 500, 0.8, 0.81), Candidate(2, 300, 0.79, 0.80)]
    measured = {0: Bound(900, 0.85, 0.84), 1: Bound(500, 0.83, 0.82)}
    assert next_candidate(candidates, measured, FLOOR, images=IMAGES, left=4) == 2
    worse = {0: Bound(900, 0.85, 0.84), 1: Bound(500, 0.81, 0.80)}
    assert next_candidate(candidates, worse, FLOOR, images=IMAGES, left=4) is None


@pytest.mark.parametrize(("came_to", "expected"), [(0.0, None), (0.011, 2)], ids=["as expected", "more"])
def test_next_candidate_is_expected_to_gain_what_those_like_it_gained_and_not_those_at_the_floor(came_to, expected):
    # the large one gained a point, which says nothing of those that are expected to come to less
    large, small = Candidate(0, 900, 0.82, NEEDED + 0.006), Candidate(1, 250, 0.78, NEEDED - 0.013)
    measured = {0: Bound(900, large.expected + 0.01, FLOOR + 0.016), 1: Bound(250, small.expected + came_to, 0.78)}
    candidates = [large, small, Candidate(2, 240, 0.78, NEEDED - 0.011)]
    assert next_candidate(candidates, measured, FLOOR, images=IMAGES, left=4) == expected


def test_next_candidate_stops_going_down_after_the_most_allowed():
    assert walk(MARGIN + 0.01, most=1) == ([2], 2)


def test_next_candidate_gives_the_most_accurate_its_chance_before_there_is_none():
    assert walk(-0.2) == ([2, 0], None)
    equals = [candidate(0, 900, 0.82), candidate(1, 700, 0.82), candidate(2, 400, 0.82)]
    measured = {2: Bound(400, 0.5, 0.49)}
    assert next_candidate(equals, measured, FLOOR, images=IMAGES, left=4) == 0


def test_next_candidate_goes_by_what_each_is_expected_to_come_to():
    late, early = Candidate(0, 300, 0.803, 0.805), Candidate(1, 400, 0.801, 0.815)
    assert next_candidate([late, early], {}, FLOOR, images=IMAGES, left=4) == 1


def test_next_candidate_below_the_floor_that_is_expected_to_rise_is_taken():
    assert next_candidate([Candidate(0, 300, 0.79, 0.83)], {}, FLOOR, images=IMAGES, left=4) == 0


@pytest.mark.parametrize("candidates", [[], [candidate(0, 100, 0.7)]], ids=["nobody", "nobody feasible"])
def test_next_candidate_without_a_feasible_trial_is_none(candidates):
    assert next_candidate(candidates, {}, FLOOR, images=IMAGES, left=4) is None


NEEDED = FLOOR + MARGIN


def test_next_candidate_goes_by_what_the_others_gained_the_first_time():
    two = [Candidate(0, 300, 0.79, NEEDED + 0.002), Candidate(1, 200, 0.79, NEEDED + 0.001)]
    short, long = NEEDED - 0.012, NEEDED + 0.003
    once = {0: Bound(300, short, short - MARGIN)}
    twice = {0: Bound(300, long, long - MARGIN, first=short)}
    alike = {0: Bound(300, long, long - MARGIN, first=long)}
    assert next_candidate(two, once, FLOOR, images=IMAGES, left=4) is None
    assert next_candidate(two, twice, FLOOR, images=IMAGES, left=4) is None
    assert next_candidate(two, alike, FLOOR, images=IMAGES, left=4) == 1


def test_floor_that_no_network_can_be_confirmed_for_asks_for_no_finetuning():
    perfect = [candidate(0, 100, 1.0)]
    assert next_candidate(perfect, {}, 0.98, images=1000, left=4) == 0
    assert next_candidate(perfect, {}, 0.98, images=100, left=4) is None
    near = {0: Bound(100, 0.999, 0.96, again=True)}
    assert next_candidate(perfect, near, 0.98, images=100, left=4) is None


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({}, None),
        ({0: NEEDED - 0.001, 1: NEEDED - 0.003}, 0),
        ({0: NEEDED - 0.002, 1: NEEDED - 0.002}, 1),
        ({0: NEEDED - WITHIN - 0.001}, None),
        ({0: NEEDED - WITHIN + 0.001}, 0),
        ({0: NEEDED - 0.001, 2: NEEDED + 0.001}, None),
        ({0: NEEDED + 0.001, 2: NEEDED - 0.004}, 2),
        ({0: NEEDED + 0.001, 2: NEEDED - WITHIN - 0.001}, None),
        ({0: NEEDED + 0.001, 1: NEEDED - 0.001, 2: NEEDED - 0.002}, 2),
        ({0: NEEDED + 0.001, 1: NEEDED - 0.001, 2: NEEDED - 0.003}, 1),
        ({0: NEEDED + 0.001, 3: NEEDED - 0.001, 1: NEEDED - 0.003}, 1),
        ({0: NEEDED + 0.001, 1: NEEDED - 0.0005, 4: NEEDED - 0.005 + 1e-6}, 1),
        ({1: NEEDED + 0.001}, None),
    ],
    ids=[
        "nobody",
        "lacks least",
        "smaller of equals",
        "lacks too much",
        "just near enough",
        "larger than an accepted one",
        "smaller than an accepted one",
        "smaller than an accepted one, lacks too much",
        "saves more, though it lacks more",
        "saves more, but lacks too much for that",
        "hardly smaller than the accepted one",
        "a small saving more of which is likely",
        "accepted",
    ],
)
def test_next_candidate_once_more_is_the_one_that_lacks_least_or_once_one_is_accepted_has_most_to_win(means, expected):
    sizes = {0: 900, 1: 500, 2: 300, 3: 890, 4: 440}
    measured = {number: Bound(sizes[number], mean, mean - MARGIN, again=True) for number, mean in means.items()}
    candidates = [Candidate(number, sizes[number], mean, mean) for number, mean in means.items()]
    assert next_candidate(candidates, measured, FLOOR, images=IMAGES, left=1) == expected


@pytest.mark.parametrize(
    ("lacking", "expected"), [(0.001, 1), (0.004, 2)], ids=["one that has been tried", "one that has not"]
)
def test_next_candidate_once_one_is_accepted_is_new_or_once_more_by_what_there_is_to_win(lacking, expected):
    measured = {
        0: Bound(900, NEEDED + 0.001, FLOOR + 0.001),
        1: Bound(500, NEEDED - lacking, FLOOR - lacking),
    }
    candidates = [Candidate(0, 900, 0.8, NEEDED + 0.001), Candidate(1, 500, 0.8, NEEDED - lacking)]
    candidates.append(Candidate(2, 500, 0.79, NEEDED - 0.001))
    may = measured | {1: replace(measured[1], again=True)}
    assert next_candidate(candidates, may, FLOOR, images=IMAGES, left=1) == expected
    assert next_candidate(candidates, measured, FLOOR, images=IMAGES, left=1) == 2
    assert next_candidate(candidates, may, FLOOR, images=IMAGES, left=0) is None


def test_next_candidate_while_none_is_accepted_is_new_before_it_is_once_more():
    measured = {0: Bound(900, NEEDED - 0.001, FLOOR - 0.001)}
    tried, new = Candidate(0, 900, 0.8, NEEDED), Candidate(1, 950, 0.8, NEEDED - 0.02)
    may = {0: replace(measured[0], again=True)}
    assert next_candidate([tried, new], may, FLOOR, images=IMAGES, left=0) == 1
    assert next_candidate([tried], may, FLOOR, images=IMAGES, left=0) == 0
    assert next_candidate([tried], measured, FLOOR, images=IMAGES, left=0) is None


@pytest.mark.parametrize(
    ("smallest", "expected"),
    [(None, 0), (1000, 1), (600, 1), (500, None)],
    ids=["none", "larger", "between", "as small"],
)
def test_next_candidate_where_one_was_accepted_after_another_finetuning_is_a_smaller_one(smallest, expected):
    candidates = [Candidate(0, 900, 0.8, NEEDED + 0.001), Candidate(1, 500, 0.79, NEEDED - 0.001)]
    assert next_candidate(candidates, {}, FLOOR, images=IMAGES, left=1, smallest=smallest) == expected


def test_image_margin_is_what_a_bound_at_the_floor_lacks():
    assert 0.008 < MARGIN < 0.01
    assert image_margin(FLOOR, 100) > 5 * MARGIN


def test_aim_is_above_the_floor_by_what_the_confirmation_will_not_bring_itself():
    assert aim(FLOOR, IMAGES, 0.0) == FLOOR + MARGIN
    assert aim(FLOOR, IMAGES, 0.003) == pytest.approx(FLOOR + MARGIN - 0.003)
    assert aim(FLOOR, IMAGES, 0.05) == FLOOR
