"""A step of CycleGAN in one process or in two; a file of its own, which a spawned process can import."""

import torch

from visionkit.reid.camstyle.model import CycleGAN, CycleGANDistributed, CycleGANOptimizers


def gradient_step(a, b):
    """One step of plain gradient descent without chance, from fixed weights."""
    torch.manual_seed(0)
    options = dict(generator=dict(ngf=2, num_blocks=1, dropout=0.0), discriminator=dict(ndf=2, num_layers=1))
    model = CycleGAN(**options, pool_size=0).double()  # in float32 rounding alone moves small weights
    if torch.distributed.is_initialized():
        model = CycleGANDistributed(model)
    wrappers = CycleGANOptimizers(dict(optimizer=dict(type="SGD", lr=0.1)))(model)
    model.train_step(dict(pair=dict(a=a, b=b)), wrappers)
    return {key.replace(".module", ""): value for key, value in getattr(model, "module", model).state_dict().items()}


def one_process_of_two(rank, folder, a, b):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(gradient_step(a[rank : rank + 1], b[rank : rank + 1]), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()
