"""The backbones inside other libraries, each in its own code."""

import pytest
import timm
import torch

from visionkit.backbones import backbone_with_fpn

THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
NAMES = ["mavit_tiny", "soft_tiny"]


@pytest.mark.parametrize("detector", ["FasterRCNN", "MaskRCNN", "RetinaNet"])
@pytest.mark.parametrize("name", NAMES)
def test_torchvision_detectors(detector, name):
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    anchors = AnchorGenerator(tuple((size,) for size in (16, 32, 64, 128, 256)), ((0.5, 1.0, 2.0),) * 5)
    key = "anchor_generator" if detector == "RetinaNet" else "rpn_anchor_generator"
    options = {key: anchors, "min_size": 64, "max_size": 96}
    model = getattr(detection, detector)(backbone_with_fpn(name, 32, **THIN), num_classes=3, **options)
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    targets = [dict(boxes=torch.tensor([[4.0, 4, 40, 50]]), labels=torch.tensor([i + 1])) for i in range(2)]
    for image, target in zip(images, targets):
        target["masks"] = torch.zeros(1, *image.shape[-2:], dtype=torch.uint8)
        target["masks"][:, 4:50, 4:40] = 1
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loss = sum(model.train()(images, targets).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and model.backbone.body.net.model.stem[0].conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()(images)
    assert len(found) == 2 and all(each["boxes"].shape[1] == 4 for each in found)


@pytest.mark.parametrize("name", NAMES)
def test_segmentation_models_pytorch(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2, decoder_channels=(32, 16, 16, 8, 8))
    loss = model(torch.rand(2, 3, 64, 64)).square().mean()
    loss.backward()
    assert loss.isfinite() and model.encoder.out_channels[-1] == 512


@pytest.mark.parametrize("name", NAMES)
def test_hugging_face(name):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=(1, 3))
    model = transformers.AutoBackbone.from_config(config).eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 64, 64)).feature_maps
    assert [tuple(each.shape[-2:]) for each in maps] == [(8, 8), (2, 2)]


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_tiny", "soft_tiny", "soft_norm_tiny"])
def test_onnx_runtime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    few = dict(newton_steps=3) if name.startswith("soft") else {}  # the exporter's time goes into steps all alike
    model = timm.create_model(name, num_classes=5, **few, **THIN).eval()
    image, file = torch.rand(2, 3, 64, 96), str(tmp_path / "model.onnx")
    any_size = ({0: "batch", 2: "height", 3: "width"},)
    torch.onnx.export(model, (image,), file, dynamo=True, verbose=False, dynamic_shapes=any_size)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image = torch.rand(3, 3, 128, 64)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(image), rtol=1e-3, atol=1e-4)
