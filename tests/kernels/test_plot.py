import json

from visionkit_kernels.plot import draw


def test_one_picture_an_operation(tmp_path):
    rows = [
        dict(op="mala", job="64 x 1 x 3136 x 64", seconds=1e-4, reference_seconds=6e-4, sdpa_seconds=2e-3),
        dict(op="mala", job="1 x 1 x 67000 x 64", seconds=2e-5, reference_seconds=9e-5, compiled_seconds=4e-5),
        dict(op="march", job="165 000 rays", failed="out of memory"),
    ]
    results = tmp_path / "device.json"
    results.write_text(json.dumps(dict(device="a device", rows=rows)))
    (picture,) = draw(results)
    assert picture.name == "device_mala.png" and picture.stat().st_size > 5000
