"""How much of a GPU the paper's network uses in training, with and without torch.compile.

    python benchmarks/gpu.py [--width 64] [--batch 16]

Width 64, depth 4, bfloat16, channels_last. The share of the peak is that of the fastest matrix product found on the
same card. Without a GPU it says so and measures nothing; `--tiny` runs the same code on the processor, for the test.
"""
import statistics
import time

import torch
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.model.losses import dice_ce_loss


def timed(call, device, rounds):
    "Median seconds of a call, after three to warm up."
    times = []
    for number in range(rounds + 3):
        start = time.perf_counter()
        call()
        if device.type == "cuda": torch.cuda.synchronize()
        if number >= 3: times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_peak(device, side):
    "Floating-point operations a second of the fastest bfloat16 matrix product."
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side ** 3 / timed(lambda: a @ b, device, 20)


def operations(network, size):
    "Floating-point operations of a training step for one slice: forward, and twice that backward."
    from torch.utils.flop_counter import FlopCounterMode
    picture = torch.zeros(1, 1, size, size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter: network(picture)
    return 3 * counter.get_total_flops()


class Step:
    "A training step on one batch that never changes."
    def __init__(self, network, batch, size, device, compiled):
        self.network, self.device = network, device
        self.run = torch.compile(network) if compiled else network
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        self.images = torch.randn(batch, 1, size, size, device=device).to(memory_format=torch.channels_last)
        self.masks = (torch.rand(batch, 1, size, size, device=device) < .05).float()

    def __call__(self):
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16): logits = self.run(self.images)
        dice_ce_loss(logits, self.masks).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()


def main(width: int = 64, batch: int = 16, tiny: bool = False) -> None:
    "Print the table."
    if not torch.cuda.is_available() and not tiny: return print("No GPU here: nothing was measured.")
    device = torch.device("cpu" if tiny else "cuda")
    sizes, ways, side, rounds = ((32,), (False,), 64, 2) if tiny else ((256, 640), (False, True), 8192, 20)
    peak = matrix_peak(device, side)
    print(f"{machine()}; matrix products reach {peak / 1e12:.0f} TFLOP/s\n")
    print("| size | torch.compile | megapixels a second | share of that peak | warm-up |\n|---|---|---|---|---|")
    for size in sizes:
        for compiled in ways:
            network = ts.UNet(width=width).to(device, memory_format=torch.channels_last).train()
            flops = operations(network, size)
            step = Step(network, batch, size, device, compiled)
            start = time.perf_counter()
            step()
            warm = time.perf_counter() - start
            each = timed(step, device, rounds)
            print(f"| {size} px | {'yes' if compiled else 'no'} | {batch * size ** 2 / each / 1e6:.1f} "
                  f"| {batch * flops / each / peak:.0%} | {warm:.1f} s |", flush=True)


if __name__ == "__main__": tyro.cli(main)
