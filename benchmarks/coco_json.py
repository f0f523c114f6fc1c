"""Seconds and peak memory of reading a generated annotation file of COCO's size, beside ``json.load``.

``uv run python benchmarks/coco_json.py [IMAGES ANNOTATIONS]``; 82,783 and 604,907 (train2014) by
default. Every reader runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedmlic.formats.coco_json import read_instances

SIZES = (82_783, 604_907)


def generate(path: Path, num_images: int, num_annotations: int) -> None:
    """Write a file in COCO's format with polygons of 10 to 40 corners."""
    rng = random.Random(0)
    ids = rng.sample(range(1, 10 * num_images), num_images)
    image = {"license": 1, "height": 480, "width": 640, "date_captured": "2013-11-14 17:02:52"}
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2014}, "images": [')
        names = ({**image, "file_name": f"COCO_train2014_{i:012}.jpg", "id": i} for i in ids)
        file.write(", ".join(map(json.dumps, names)))
        file.write('], "annotations": [')
        for number in range(num_annotations):
            corners = [round(rng.uniform(0, 480), 2) for _ in range(rng.choice([20, 30, 40, 60, 80]))]
            box = [round(rng.uniform(0, 300), 2), round(rng.uniform(0, 200), 2), 100.5, 80.25]
            ids_of = {"image_id": rng.choice(ids), "category_id": rng.randint(1, 80), "id": number + 1}
            record = {"segmentation": [corners], "area": 4032.5, "iscrowd": 0, "bbox": box, **ids_of}
            file.write((", " if number else "") + json.dumps(record))
        categories = [{"supercategory": "thing", "id": i, "name": f"label {i}"} for i in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def read(reader: str, path: Path) -> None:
    """Read the file in this process and print what it took."""
    started, wall = time.process_time(), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reader == "json.load":
        with path.open(encoding="utf-8") as file:
            count = len(json.load(file)["annotations"])
    else:
        found = read_instances(path)
        count = len(found.row) + found.duplicates
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = f"{time.process_time() - started:.1f} s of processor, {time.monotonic() - wall:.1f} s"
    print(f"{reader:15} {count} annotations: {seconds}, {peak / 1024:.0f} MB more than before")


def main() -> None:
    """Generate once, read with both."""
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2], Path(sys.argv[3]))
        return
    sizes = [int(text) for text in sys.argv[1:]] or SIZES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        generate(path, *sizes)
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        for reader in ("read_instances", "json.load"):
            subprocess.run([sys.executable, __file__, "--read", reader, str(path)], check=True)


if __name__ == "__main__":
    main()
