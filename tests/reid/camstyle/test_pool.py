"""The laws of the image pool, and its place in a checkpoint."""

import torch

from visionkit.reid.camstyle.pool import ImagePool


def numbered(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)


def numbers_of(images):
    return [int(image[0, 0, 0]) for image in images]


def test_it_hands_through_until_it_is_full():
    pool = ImagePool(4)
    assert numbers_of(pool.query(numbered(0, 1, 2))) == [0, 1, 2]
    assert numbers_of(pool.query(numbered(3))) == [3]
    assert numbers_of(pool.images) == [0, 1, 2, 3]


def test_then_half_of_the_answers_are_earlier_images_and_nothing_is_lost():
    torch.manual_seed(0)
    pool, shown = ImagePool(10), []
    for number in range(1000):
        answer = numbers_of(pool.query(numbered(number)))[0]
        assert answer <= number
        shown.append(answer)
    earlier = sum(answer != number for number, answer in enumerate(shown)) / 990
    assert 0.45 < earlier < 0.55
    assert len(set(shown[10:])) == 990  # what is shown has left the pool, or never entered it
    assert not set(numbers_of(pool.images)) & set(shown[10:])
    assert set(shown[10:]) | set(numbers_of(pool.images)) == set(range(1000))


def test_an_answer_does_not_change_when_its_place_is_taken():
    torch.manual_seed(0)
    pool = ImagePool(1)
    pool.query(numbered(0))
    answers = torch.cat([pool.query(numbered(number)) for number in range(1, 30)])
    before = answers.clone()
    pool.query(numbered(*range(100, 130)))
    assert torch.equal(answers, before)


def test_size_zero_keeps_nothing():
    pool = ImagePool(0)
    assert numbers_of(pool.query(numbered(1, 2))) == [1, 2] and len(pool.images) == 0


def test_its_images_travel_in_the_state():
    torch.manual_seed(0)
    pool, copy = ImagePool(4), ImagePool(4)
    copy.load_state_dict(pool.state_dict())
    assert len(copy.images) == 0
    pool.query(numbered(*range(7)))
    copy.load_state_dict({key: value.clone() for key, value in pool.state_dict().items()})
    torch.manual_seed(1)
    expected = [pool.query(numbered(number)) for number in range(20)]
    torch.manual_seed(1)
    assert all(torch.equal(copy.query(numbered(number)), each) for number, each in enumerate(expected))
