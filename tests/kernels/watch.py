"""Watches what the programs of a launch do to memory, in Triton's interpreter.

A device runs them at once and in no order; the interpreter runs one after the other, so that results look right where
two of them meet. In one launch an address may be read, or stored to once, or added to atomically. All else is a race,
or, within a program, wants a barrier that Triton does not put there. What a device leaves undefined is zero in the
interpreter; here it is NaN.
"""

import numpy as np
from triton.runtime import interpreter


def watch(monkeypatch):
    """From now on a launch with a race, or with an access outside of its tensors, is an AssertionError."""
    accesses = dict(load=[], store=[], add=[])
    for kind, operation, place, masked in (
        ("load", "create_masked_load", 0, 1),
        ("store", "create_masked_store", 0, 2),
        ("add", "create_atomic_rmw", 1, 3),
    ):
        _note(monkeypatch, accesses[kind], operation, place, masked)
    _spoil(monkeypatch)
    launch = interpreter.GridExecutor.__call__

    def watched(grid, *tensors, **options):
        for parts in accesses.values():
            parts.clear()
        launch(grid, *tensors, **options)
        load, store, add = (np.concatenate([np.zeros(0, np.uint64), *parts]) for parts in accesses.values())
        check(grid.fn.__name__, load, store, add, [x for x in tensors if hasattr(x, "data_ptr")])

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)


def _note(monkeypatch, parts, operation, place, masked):
    """Keeps the addresses of an operation of the interpreter, which are its argument ``place``, under their mask."""
    run = getattr(interpreter.interpreter_builder, operation)

    def noted(*inputs):
        addresses, mask = (inputs[i].data.ravel() for i in (place, masked))
        parts.append(addresses[mask.astype(bool)])
        return run(*inputs)

    monkeypatch.setattr(interpreter.interpreter_builder, operation, noted)


def _spoil(monkeypatch):
    """What a load leaves out is NaN unless it says what it is."""
    load = interpreter.interpreter_builder.create_masked_load

    def spoilt(addresses, mask, other, *options):
        if other is None:
            kind = addresses.get_element_ty()
            size = max(8, kind.primitive_bitwidth) // 8
            ones = np.full((*addresses.data.shape, size), 255, np.uint8)  # of all floating-point types NaN
            other = interpreter.TensorHandle(ones.view(interpreter._get_np_dtype(kind))[..., 0], kind)
        return load(addresses, mask, other, *options)

    monkeypatch.setattr(interpreter.interpreter_builder, "create_masked_load", spoilt)


def check(kernel, load, store, add, tensors):
    """Raises AssertionError for addresses of one launch that meet, or lie outside of its tensors."""
    assert len(np.unique(store)) == len(store), f"{kernel}: stores twice to one place"
    assert not len(np.intersect1d(load, np.append(store, add))), f"{kernel}: reads what it writes"
    assert not len(np.intersect1d(store, add)), f"{kernel}: adds to what it stores"
    everything = np.unique(np.concatenate([load, store, add]))
    inside = np.zeros(len(everything), bool)
    for x in tensors:
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
        inside |= (everything >= x.data_ptr()) & (everything <= x.data_ptr() + last * x.element_size())
    assert inside.all(), f"{kernel}: {(~inside).sum()} places lie in none of its tensors"
