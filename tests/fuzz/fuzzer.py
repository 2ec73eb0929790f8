"""Feeds damaged files of one kind to their reader, in a process of its own, and reports what went wrong as JSON.

Each input must be read, or refused with one line that names the file. Anything else is a failure: another exception, a
message of several lines, an input that takes half a minute, a process that dies or grows by a gigabyte.
"""

import contextlib
import json
import random
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fuzz.mutations import damage, damage_member, damage_setting, damage_text, damage_values
from visionkit.engine.config import load_config, plain
from visionkit.errors import VisionKitError

CPU_SECONDS, SECONDS = 30, 600  # other programs may take most of the processor
GROWTH = 1 << 30
ARCHITECTURE = dict(type="visionkit.SourceReID", backbone=dict(type="visionkit.TinyBackbone"), num_classes=5)


class Checkpoints:
    """Ours, older pickles and safetensors, read as weights and as models."""

    def __init__(self, folder):
        from reid import tiny  # noqa: F401  the backbone

        from visionkit.registry import MODELS

        self.folder = folder
        state = MODELS.build(ARCHITECTURE).state_dict()
        self.content = dict(meta=dict(model=json.dumps(ARCHITECTURE), image_size=[16, 8]), state_dict=state, history=[])
        torch.save(self.content, folder / "zip.pth")
        torch.save(self.content, folder / "old.pth", _use_new_zipfile_serialization=False)
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
        self.sound = [(path, path.read_bytes()) for path in sorted(folder.iterdir())]

    def make(self, number, random):
        path, data = self.sound[number % 3]
        target = self.folder / f"input{path.suffix}"
        if path.name == "zip.pth" and random.random() < 0.3:  # a sound file that describes another model
            model = damage_text(self.content["meta"]["model"], random)
            torch.save(dict(self.content, meta=dict(self.content["meta"], model=model)), target)
        elif path.name == "zip.pth" and random.random() < 0.7:
            target.write_bytes(damage_member(data, random))
        else:
            target.write_bytes(damage(data, random))
        return target

    def read(self, path):
        from visionkit.engine.epoch_files import newest_whole_checkpoint
        from visionkit.engine.stage import give_weights
        from visionkit.reid.rebuild import rebuild

        if path.suffix == ".safetensors":
            give_weights(torch.nn.Linear(2, 2), path)
            return
        epoch = path.rename(path.with_name("epoch_1.pth"))
        epoch.with_name("epoch_1.pth.sha256").write_bytes(epoch.read_bytes()[:40])
        assert newest_whole_checkpoint(self.folder) is None  # the checksum tells at once
        epoch.with_name("epoch_1.pth.sha256").unlink()
        rebuild(epoch.rename(path))


class Indexes:
    """A gallery index of two parts with faiss's structure beside them, opened and searched."""

    def __init__(self, folder):
        from visionkit.reid.gallery import GalleryIndex

        self.folder = folder
        index = GalleryIndex("M-1")
        for number in (50, 30):
            index.add(np.random.RandomState(number).rand(number, 8), [f"{i}.jpg" for i in range(number)])
        index.save(folder)
        index.search(np.zeros((1, 8)), 3, "hnsw")
        self.sound = {path: path.read_bytes() for path in sorted(folder.iterdir())}

    def make(self, number, random):
        for path, data in self.sound.items():
            path.write_bytes(data)
        path = random.choice(list(self.sound))
        path.write_bytes(damage(self.sound[path], random))
        return path

    def read(self, path):
        from visionkit.reid.gallery import GalleryIndex

        index = GalleryIndex.load(self.folder, "M-1")
        for approximate in (None, "hnsw"):
            index.search(np.zeros((1, 8)), 3, approximate)


class Images:
    """Pictures as they come from cameras: JPEG with EXIF, progressive and grey ones, PNG, WebP, TIFF."""

    def __init__(self, folder):
        self.folder = folder
        picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 32, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(folder / "a.jpg", exif=exif)
        picture.save(folder / "b.jpg", progressive=True, quality=30)
        picture.convert("L").save(folder / "c.jpg")
        for ending in ("png", "webp", "tif"):
            picture.save(folder / f"d.{ending}")
        self.sound = [(path, path.read_bytes()) for path in sorted(folder.iterdir())]

    def make(self, number, random):
        path, data = self.sound[number % (2 * len(self.sound)) if number % 12 < 6 else number % 3]
        target = self.folder / f"input{path.suffix}"
        target.write_bytes(damage(data, random))
        return target

    def read(self, path):
        from visionkit.datasets.images import read_image

        assert read_image(str(path)).mode == "RGB"


LOSSES = dict(id=1.0, triplet=1.0)
SETTINGS = dict(
    camstyle=dict(optimizer=dict(type="Adam", lr=2e-4, betas=[0.5, 0.999]), test_batch_size=4, sheet_rows=2),
    source=dict(
        lr=1e-3,
        weight_decay=5e-4,
        augmentation=dict(pad=2, local_grayscale=0.4, grayscale=0.05, erasing=0.5),
        model=dict(losses=LOSSES, label_smoothing=0.1, bn_group_size=2, bmfn=True),
        metric=dict(topk=[1, 5], rerank=dict(k1=3, k2=2, lambda_value=0.3)),
    ),
    target=dict(
        lr=1e-3,
        kmeans=dict(batch_size=9, init_size=9, max_iter=3, max_no_improvement=3, reassignment_ratio=0.01, n_init=1),
        model=dict(losses=dict(LOSSES, fusion=0.5), ema_limit=0.9, ema_buffers="copy", label_smoothing=0.1),
    ),
)


class Configs:
    """Configs with damage in their text, their values or their settings: each stage is built and trained for a step."""

    def __init__(self, folder):
        from reid import tiny  # noqa: F401  the backbone
        from reid_trees import write_duke, write_market

        from visionkit.engine.checkpoints import save_checkpoint
        from visionkit.engine.loops import NamedLoadersTrainLoop
        from visionkit.registry import MODELS

        self.folder = folder
        write_market(folder / "market", cams=2)
        write_duke(folder / "duke")
        text = (Path(__file__).parents[1] / "survival" / "config.py").read_text()
        self.text = text.replace("{{$SURVIVAL_DATA:.}}", str(folder)).replace("epochs=4", "epochs=1")
        NamedLoadersTrainLoop.run = lambda loop: self.step(loop)
        (folder / "done" / "images").mkdir(parents=True)
        image = min((folder / "market" / "bounding_box_train").glob("*_c1*.jpg"))
        shutil.copy(image, folder / "done" / "images" / f"{image.stem}_fake_1to2.jpg")
        save_checkpoint(dict(state_dict=MODELS.build(ARCHITECTURE).state_dict()), folder / "done" / "epoch_1.pth")
        self.done = dict.fromkeys(("camstyle", "source"), folder / "done")
        self.steps = 0
        self.read(self.write(folder / "sound.py", self.settings()))  # which loads what is loaded once
        assert self.steps == 4, "each stage takes a step, and the first one in a whole run too"

    def step(self, loop):
        """In place of a training."""
        loop.runner.call_hook("before_train")
        loop._begin_epoch()
        loop.runner.model.train()
        loop.run_iter(0, next(iter(loop.dataloaders.batches_from(0))))
        self.steps += 1
        raise VisionKitError("a step was done")

    def values(self):
        path = self.folder / "values.py"
        path.write_text(self.text)
        return plain(load_config(path))

    def settings(self):
        """With more settings than the text has."""
        values = self.values()
        for name, settings in plain(SETTINGS).items():
            values["stages"][name].update(settings)
        return values

    def write(self, path, values):
        path.write_text("nan = float('nan')\n" + "".join(f"{key} = {value!r}\n" for key, value in values.items()))
        return path

    def make(self, number, random):
        path = self.folder / f"config{number}.py"
        if number % 3 == 0:
            path.write_text(damage_text(self.text, random))
            return path
        if number % 3 == 1:
            return self.write(path, damage_values(self.values(), random))
        return self.write(path, damage_setting(self.settings(), random))

    def read(self, path):
        from visionkit.engine.pipeline import Context, build_stage, run_pipeline

        cfg = load_config(path)
        cfg.pop("nan", None)
        try:
            run_pipeline(cfg, self.folder / path.stem)  # as far as the first training
        except VisionKitError as error:
            if "a step was done" not in str(error):
                raise
        for name, stage in cfg["stages"].items():
            context = Context(cfg, self.folder / path.stem / name, 1, "none", self.done)
            with contextlib.suppress(VisionKitError):
                build_stage(name, stage).run(context)


class Captures:
    """COLMAP's binary models and transforms.json."""

    def __init__(self, folder):
        from nvs.captures.trees import write_colmap, write_transforms

        self.colmap, self.transforms = folder / "colmap", folder / "transforms"
        write_colmap(self.colmap)
        write_transforms(self.transforms)
        files = [*sorted((self.colmap / "sparse" / "0").glob("*.bin")), self.transforms / "transforms.json"]
        self.sound = {path: path.read_bytes() for path in files}

    def make(self, number, random):
        for path, data in self.sound.items():
            path.write_bytes(data)
        path = list(self.sound)[number % len(self.sound)]
        data = self.sound[path]
        broken = damage_text(data.decode(), random).encode() if path.suffix == ".json" else damage(data, random)
        path.write_bytes(broken)
        return path

    def read(self, path):
        from visionkit.nvs.captures import read_capture

        read_capture(self.transforms if path.suffix == ".json" else self.colmap)


KINDS = dict(checkpoints=Checkpoints, indexes=Indexes, images=Images, configs=Configs, captures=Captures)


class Slow(BaseException):
    pass


def alarm(*_):
    raise Slow


def failure(kind, number, seed):
    """What is wrong with one input's reading; None where nothing is."""
    path = kind.make(number, random.Random(f"{seed}-{number}"))
    print(number, path, file=sys.stderr, flush=True)  # the last line tells which input killed the process
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(SECONDS)
    try:
        kind.read(path)
    except VisionKitError as error:
        return f"several lines: {error}" if "\n" in str(error) or len(str(error)) > 1000 else None
    except Slow:
        return "takes too long"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return None


def main(name, folder, start, count, seed):
    warnings.simplefilter("ignore")
    for over in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(over, alarm)
    Path(folder).mkdir(parents=True)
    kind = KINDS[name](Path(folder))
    for number in range(start):  # loads what is loaded once
        failure(kind, number, f"warm-{seed}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    failures = {}
    for number in range(count):
        reason = failure(kind, number, seed)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        if grown > GROWTH:
            reason, before = f"{reason or ''} grew by {grown >> 20} MiB", before + grown
        if reason:
            failures[number] = re.sub(r"\s+$", "", reason)
    print(json.dumps(failures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], 3, int(sys.argv[3]), sys.argv[4])
