from rlflow.data.order import RowOrder


def test_every_epoch_is_another_permutation():
    order = RowOrder(10, seed=3, shuffle=True)
    epochs = [order.rows(10 * epoch, 10) for epoch in range(3)]
    assert all(sorted(rows) == list(range(10)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_cursor_is_all_that_resuming_needs():
    whole = RowOrder(7, seed=5, shuffle=True).rows(0, 40)
    pieces = [row for start in range(0, 40, 4) for row in RowOrder(7, seed=5, shuffle=True).rows(start, 4)]
    assert pieces == whole


def test_without_shuffling_rows_come_in_their_order():
    assert RowOrder(4, seed=5, shuffle=False).rows(2, 7) == [2, 3, 0, 1, 2, 3, 0]


def test_seeds_differ():
    assert RowOrder(50, seed=1, shuffle=True).rows(0, 50) != RowOrder(50, seed=2, shuffle=True).rows(0, 50)


def test_epochs_are_counted_with_their_fraction():
    assert RowOrder(8, seed=0, shuffle=True).epoch(20) == 2.5
