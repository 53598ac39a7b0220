"""The processor that a teacher's forward passes run on: the CPU, or a CUDA device."""

from streams.contract.errors import UsageError

CPU, CUDA, AUTO = "cpu", "cuda", "auto"


def torch_device(asked: str, option: str) -> str:
    """Return "cpu" or "cuda" for what `option` was set to: "auto" is CUDA where torch finds a
    device, else the CPU.

    Raises UsageError for another word, and for "cuda" where torch finds no device. torch is
    imported only where it has to be asked.
    """
    if asked == CPU:
        return CPU
    if asked not in (AUTO, CUDA):
        raise UsageError(f"{option} {asked}: write auto, cpu or cuda")
    import torch

    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as on the CPU
        return CUDA
    if asked == AUTO:
        return CPU
    built = "built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    raise UsageError(
        f"{option} cuda: torch {torch.__version__} ({built}) finds no CUDA device: see that "
        "nvidia-smi lists one and install a build of torch for it, or use cpu or auto"
    )
