"""Compares the scheduler with ASHA on scikit-learn's digits. Run: python docs/example_scheduler.py"""

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from schedulers import LossExtrapolationScheduler


class Digits(tune.Trainable):
    def setup(self, config):
        images, labels = load_digits(return_X_y=True)
        self.train, self.test, self.y, self.truth = train_test_split(images / 16, labels, random_state=0)
        self.state = {"net": MLPClassifier(random_state=0), "order": np.random.default_rng(0), "samples_seen": 0}

    def step(self):  # about 500 images, then the held-out loss, which is comparable between batch sizes
        for _ in range(max(512 // self.config["batch_size"], 1)):
            batch = self.state["order"].integers(len(self.y), size=self.config["batch_size"])
            self.state["net"].partial_fit(self.train[batch], self.y[batch], classes=range(10))
            self.state["samples_seen"] += len(batch)
        loss = log_loss(self.truth, self.state["net"].predict_proba(self.test))
        return {"loss": loss, "samples_seen": self.state["samples_seen"]}

    def save_checkpoint(self, checkpoint_dir):  # lets a trial be paused
        return self.state

    def load_checkpoint(self, checkpoint):
        self.state = {name: checkpoint[name] for name in self.state}


for name, scheduler in {
    "loss extrapolation": LossExtrapolationScheduler("loss", "min", budget=20_000, window=4_000),
    "ASHA": ASHAScheduler("samples_seen", "loss", "min", max_t=20_000, grace_period=1_250),
}.items():
    space, config = {"batch_size": tune.grid_search([8, 32, 128, 512])}, tune.TuneConfig(scheduler=scheduler)
    results = tune.Tuner(Digits, param_space=space, tune_config=config, run_config=tune.RunConfig(verbose=0)).fit()
    best = results.get_best_result("loss", "min", scope="last")
    size, loss = best.config["batch_size"], best.metrics["loss"]
    spent = sum(result.metrics["samples_seen"] for result in results)
    print(f"{name}: batch size {size}, held-out loss {loss:.3f}, {spent:,} images in total")
