"""Which batch size? The scheduler beside ASHA, on scikit-learn's digits. Run: python docs/example_scheduler.py"""

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from schedulers import LossExtrapolationScheduler

BUDGET, SIZES = 20_000, [8, 32, 128, 512]


class Digits(tune.Trainable):
    def setup(self, config):
        images, labels = load_digits(return_X_y=True)
        self.train, self.test, self.y, self.truth = train_test_split(images / 16, labels, random_state=0)
        self.net, self.order, self.seen = MLPClassifier(random_state=0), np.random.default_rng(0), 0

    def step(self):  # about 500 images, then the held-out loss: it can be compared whatever the batch size
        for _ in range(max(512 // self.config["batch_size"], 1)):
            batch = self.order.integers(len(self.y), size=self.config["batch_size"])
            self.net.partial_fit(self.train[batch], self.y[batch], classes=range(10))
            self.seen += len(batch)
        return {"loss": log_loss(self.truth, self.net.predict_proba(self.test)), "samples_seen": self.seen}

    def save_checkpoint(self, checkpoint_dir):  # so that a trial can wait for the others without holding a CPU
        return {"net": self.net, "order": self.order, "seen": self.seen}

    def load_checkpoint(self, checkpoint):
        self.net, self.order, self.seen = checkpoint["net"], checkpoint["order"], checkpoint["seen"]


def compare(storage=None):
    ours = LossExtrapolationScheduler("loss", "min", budget=BUDGET, window=BUDGET // 5)
    asha = ASHAScheduler("samples_seen", "loss", "min", max_t=BUDGET, grace_period=BUDGET // 16)
    for name, scheduler in {"loss extrapolation": ours, "ASHA": asha}.items():
        results = tune.Tuner(
            Digits,
            param_space={"batch_size": tune.grid_search(SIZES)},
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0),
        ).fit()
        best = results.get_best_result("loss", "min", scope="last")
        spent = sum(result.metrics["samples_seen"] for result in results)
        yield name, best.config["batch_size"], best.metrics["loss"], spent


if __name__ == "__main__":
    for name, size, loss, spent in compare():
        print(f"{name}: batch size {size}, held-out loss {loss:.3f}, {spent:,} images in all")
