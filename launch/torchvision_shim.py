"""Lets torchvision be imported beside a CPU-only torch: run once in a fresh environment (`python
launch/torchvision_shim.py`).

The torchvision wheel on the public index is built for CUDA. Beside CPU torch its C++ library cannot load, and `import
torchvision` dies on registering a fake kernel for an operator that was never declared; open_clip, timm and most of
transformers go down with it. This file installs itself into site-packages with a `.pth` that starts it in every process
(launchers, spawned workers): an import hook that declares those operators just before torchvision wants them.
Transforms and models then work; the C++ operators (nms, roi_align) and `torchvision.io` stay unavailable, and nothing
here needs them. With a CUDA torch, or a torchvision that imports, nothing is done.

Only the standard library may be imported at module top: every Python process of the environment pays for it.
"""

import sys

NAME = "ccr_torchvision_shim"
OPERATORS = ("nms", "qnms")  # those that torchvision 0.26 to 0.28 register fake kernels for without checking


class DeclareOperators:
    """Meta path hook: finds nothing, but acts when torchvision is about to register its fake kernels."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision._meta_registrations" and cls.library is None:
            import torch
            from torchvision import extension

            if not extension._has_ops():
                cls.library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in OPERATORS:
                    cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


def install() -> None:
    """Called by the `.pth` at the start of every interpreter."""
    if DeclareOperators not in sys.meta_path:
        sys.meta_path.insert(0, DeclareOperators)


def main() -> int:
    import shutil
    import subprocess
    import sysconfig
    from pathlib import Path

    def torchvision_imports() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)

    import torch

    if torch.version.cuda is not None:
        print(f"torchvision shim: not needed, torch {torch.__version__} is a CUDA build")
        return 0
    first = torchvision_imports()
    if first.returncode == 0:
        print("torchvision shim: not needed, torchvision imports")
        return 0
    if "does not exist" not in first.stderr:  # another illness: hiding it would not help
        print(
            f"torchvision shim: torchvision fails for a reason this shim cannot mend:\n{first.stderr}", file=sys.stderr
        )
        return 1
    folder = Path(sysconfig.get_paths()["purelib"])
    shutil.copyfile(Path(__file__).resolve(), folder / f"{NAME}.py")
    (folder / f"{NAME}.pth").write_text(f"import {NAME}; {NAME}.install()\n")
    second = torchvision_imports()
    if second.returncode != 0:
        print(
            f"torchvision shim: installed in {folder}, but torchvision still fails:\n{second.stderr}", file=sys.stderr
        )
        return 1
    print(f"torchvision shim: installed in {folder}; torchvision now imports beside torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
