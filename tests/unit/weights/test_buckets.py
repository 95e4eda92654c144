import random
from itertools import pairwise

import pytest

from rlflow.weights.buckets import ALIGNMENT_BYTES, TensorDescription, plan_buckets


def tensor(name, *shape, item_bytes=2):
    return TensorDescription(name, "bfloat16" if item_bytes == 2 else "float32", shape, item_bytes)


def layout(buckets):
    return [[(slot.name, slot.offset, slot.num_bytes) for slot in bucket.slots] for bucket in buckets]


def test_tensors_start_at_aligned_bytes():
    buckets = plan_buckets([tensor("a", 100), tensor("b", 256), tensor("c", 3, 5, item_bytes=4)], 4096)
    assert layout(buckets) == [[("a", 0, 200), ("b", 512, 512), ("c", 1024, 60)]]
    assert buckets[0].num_bytes == 1084
    assert (buckets[0].slots[2].dtype, buckets[0].slots[2].shape) == ("float32", (3, 5))


def test_a_bucket_is_filled_to_its_last_byte():
    full = [tensor("a", 256), tensor("b", 256)]
    assert len(plan_buckets(full, 1024)) == 1
    assert layout(plan_buckets(full, 1023)) == [[("a", 0, 512)], [("b", 0, 512)]]


def test_padding_counts_against_the_size():
    assert len(plan_buckets([tensor("a", 1), tensor("b", 1)], 514)) == 1
    assert len(plan_buckets([tensor("a", 1), tensor("b", 1)], 513)) == 2


def test_a_tensor_larger_than_a_bucket_gets_its_own():
    buckets = plan_buckets([tensor("a", 8), tensor("large", 4096), tensor("b", 8), tensor("c", 8)], 1024)
    assert layout(buckets) == [[("a", 0, 16)], [("large", 0, 8192)], [("b", 0, 16), ("c", 512, 16)]]


def test_a_scalar_has_one_item():
    assert plan_buckets([tensor("scale", item_bytes=4)], 64)[0].num_bytes == 4


def test_no_tensors_no_buckets():
    assert plan_buckets([], 1024) == ()


@pytest.mark.parametrize("seed", range(20))
def test_every_tensor_once_in_order_aligned_and_apart(seed):
    chance = random.Random(seed)
    tensors = [tensor(f"t{i}", chance.randint(1, 900), item_bytes=chance.choice([2, 4])) for i in range(50)]
    limit = chance.choice([600, 2048, 10_000])
    buckets = plan_buckets(tensors, limit)
    assert [slot.name for bucket in buckets for slot in bucket.slots] == [t.name for t in tensors]
    assert [slot.num_bytes for bucket in buckets for slot in bucket.slots] == [t.num_bytes for t in tensors]
    for bucket in buckets:
        assert bucket.num_bytes <= limit or len(bucket.slots) == 1
        assert all(slot.offset % ALIGNMENT_BYTES == 0 for slot in bucket.slots)
        for slot, following in pairwise(bucket.slots):
            assert slot.offset + slot.num_bytes <= following.offset
