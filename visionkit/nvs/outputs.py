"""The files of a rendering: their names, and a look before the work whether they can be written."""

from collections import Counter
from pathlib import Path

from visionkit.errors import VisionKitError
from visionkit.files import check_no_folder, check_writable


def video_files(inputs: list[Path], out: str | None, several: bool) -> list[Path]:
    """The video of each input, after a look at whether it and its contact sheet can be written."""
    files = _names(inputs, out, several)
    sheets = [sheet_of(file) for file in files]
    if replaced := {sheet.resolve() for sheet in sheets} & {path.resolve() for path in inputs}:
        raise VisionKitError(f"--out {out}: the contact sheet would replace the photo {replaced.pop()}; give another")
    if several and files[0].parent.resolve() == inputs[0].parent.resolve():
        raise VisionKitError(f"--out {out}: is the photos' folder, where contact sheets would be photos; give another")
    check_targets([each for pair in zip(files, sheets) for each in pair])
    return files


def sheet_of(video: Path) -> Path:
    """The contact sheet's file. Its name is not a photo's, which may lie beside the video."""
    return video.with_name(f"{video.stem}_sheet.jpg")


def check_targets(targets: list[Path]) -> None:
    """Raises VisionKitError if one of the files cannot be written; leaves nothing behind."""
    for target in targets:
        check_no_folder(target, "--out")
    for target in {target.parent: target for target in reversed(targets)}.values():  # the first of each folder
        check_writable(target, "--out")


def _names(inputs: list[Path], out: str | None, several: bool) -> list[Path]:
    if several:
        folder = Path(out or "views")
        if folder.suffix.lower() == ".mp4" or folder.is_file():
            raise VisionKitError(f"--out {out}: expected a folder, for there are several photos")
        stems = Counter(path.stem for path in inputs)
        return [folder / f"{path.stem if stems[path.stem] == 1 else path.name}.mp4" for path in inputs]
    file = Path(out or f"{inputs[0].resolve().stem}_views.mp4")
    file = file / f"{inputs[0].resolve().stem}.mp4" if file.is_dir() else file
    if file.suffix.lower() != ".mp4":
        raise VisionKitError(f"--out {out}: expected a name that ends in .mp4")
    return [file]
