"""Lightning: automatic optimization, and manual with a step every second batch."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import normgeo as ng


class Automatic(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = ng.nn.MLP(8, 32, 2)
        self.losses: list[float] = []

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> dict[str, object]:
        opt = ng.optimizer(self.net, lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=50)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Manual(Automatic):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.manual_backward(self.loss(batch))
        if index % 2:
            opt = self.optimizers()
            opt.step()
            opt.zero_grad()


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = DataLoader(TensorDataset(x, x[:, :2].sin()), batch_size=32)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for module in (Automatic(), Manual()):
        lightning.Trainer(max_epochs=5, enable_checkpointing=False, **quiet).fit(module, data)
        print(f"{type(module).__name__}: loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
