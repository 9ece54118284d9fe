"""A training run from its configuration to its final table."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import backbones
from eval.embedding import verify_bins
from eval.present.plots import draw_roc, save_figure
from eval.present.tables import verification_table, write_results
from eval.roc import Roc
from eval.verification import TenFold
from recognition import build
from recognition import signals as interruption
from recognition.checkpoints import state, store
from recognition.checkpoints.resume import refuse_changed_settings, refuse_used_output
from recognition.checkpoints.saver import Saver, check_metric
from recognition.data.prefetch import DeviceBatch, Prefetcher
from recognition.encoders.build import build_encoder, initialise
from recognition.encoders.embedder import Embedder, autocast_type
from recognition.monitor.diagnostics import Diagnostics
from recognition.monitor.not_finite import FILE as NOT_FINITE
from recognition.monitor.not_finite import SkippedSteps
from recognition.monitor.progress import Progress
from recognition.monitor.skipped import SkippedRecords
from recognition.optimiser import LossScale, build_optimiser
from recognition.run_lock import RunLock
from recognition.schedule import Schedule
from recognition.signals import Interruption
from recognition.step import StepResult, TrainStep
from utils import dist
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.randomness import seed_for
from utils.sync_bn import convert_sync_batchnorm


class Trainer:
    """Builds everything, resumes if there is something to resume from, trains, verifies, saves."""

    def __init__(self, config: Config, world: World):
        self.world = world
        dataset = build.open_dataset(config)
        self.config = config = build.settle(config, dataset, world)
        self.output = Path(config.output)
        self.bins = build.verification_sets(config)
        check_metric(config.keep_best, list(self.bins))
        self.loader = build.build_loader(config, dataset, world)  # before there are threads: workers are forked
        self.class_gaps = build.classes_without_images(config, dataset)
        self.prefetcher = Prefetcher(world.device, self.loader.slots, keep=config.gradient_acc > 1)
        self.autocast = autocast_type(config.precision, world.device)
        self.encoder = build_encoder(config).to(world.device)
        if config.sync_bn:
            self.encoder = convert_sync_batchnorm(self.encoder)
        self.momentum_encoder = build.build_momentum_encoder(config, self.encoder)
        self.joint = build.build_joint_loss(config, world)
        self.optimiser = build_optimiser(config, self.encoder, self.joint.classifier)
        self.loss_scale = LossScale(self.autocast == torch.float16, world.device)
        self.schedule = Schedule(config, len(self.loader), self.joint.partition)
        self.steps_per_epoch, self.total_steps = self.schedule.steps_per_epoch, self.schedule.total_steps
        self.embed = Embedder(self.encoder, world.device, config.channel_order, self.autocast)
        self.not_finite = SkippedSteps(self.output / NOT_FINITE, dataset, config.max_skipped)
        self.lock = RunLock(self.output)
        self.step_number = self.skipped_in_a_row = self.requests = 0
        self._curves: dict[str, Roc] = {}

    # -------------------------------------------------------------------------------------------- the run

    def run(self) -> dict[str, dict[str, float]]:
        """Trains to the end, or until asked to stop; returns the final verification, set -> metric -> value."""
        dist.on_first_rank(self._prepare_output)
        self.unreadable = SkippedRecords(self.output)
        self.saver = Saver(self.output, self.config, list(self.bins), self.steps_per_epoch, self._capture)
        start = self._resume() or self._begin()
        dist.on_first_rank(lambda: self.config.save(self.output / "config.json"))
        self.diagnostics = Diagnostics(
            self.config, self.encoder, self.joint, self.autocast, self.world, self.step_number, self.steps_per_epoch
        )
        with (
            Progress(self.output, self.world.is_first, self.total_steps, self.step_number) as progress,
            Interruption(self.world.is_first) as self.interruption,
        ):
            self.train_step = TrainStep(
                self._distributed_encoder(), self.joint, self.optimiser, self.loss_scale, self.autocast,
                self.config.max_grad_norm, self.world.device, lambda why: self._mind_verdict(why, progress),
                self.momentum_encoder,
            )  # fmt: skip
            if self.world.size > 2:
                self.train_step.settle_buckets(self.config.views, self.config.batch_size)
            self._introduce(progress, start)
            while self.step_number < self.total_steps and not self.requests & interruption.STOP:
                self._epoch(progress)
            self.train_step.settle()
            results = self._finish(progress) if self.step_number == self.total_steps else self._leave(progress)
        self.prefetcher.close()
        self.loader.close()
        self.lock.release()
        return results

    def _epoch(self, progress: Progress) -> None:
        """Trains from where the run stands to the end of that epoch (or of the run)."""
        epoch, done = divmod(self.step_number, self.steps_per_epoch)
        accumulate = self.config.gradient_acc
        stop = min(self.total_steps, (epoch + 1) * self.steps_per_epoch)
        batches = self.prefetcher(self.loader.epoch(epoch, start=done * accumulate))
        self.encoder.train()
        try:
            while self.step_number < stop and not self.requests & interruption.STOP:
                self._prepare_step()
                step_batches = [next(batches) for _ in range(accumulate)]
                result = self.train_step(step_batches, self.interruption.requests | self.saver.request)
                self.requests = result.requests
                first_batch = (self.step_number - epoch * self.steps_per_epoch) * accumulate
                self.step_number += 1
                self.not_finite.tried(self.step_number, epoch, first_batch, step_batches)
                self._mind_unreadable(result, step_batches, progress)
                self.diagnostics.after_step(self.step_number, step_batches[-1], progress, self.train_step.settle)
                if self._due(self.config.frequent) and not self.train_step.settle():
                    self._report(result, progress)
                if self.step_number < self.total_steps:
                    self._periodically(progress)
        finally:
            batches.close()
        if line := self.unreadable.epoch_line():
            progress.say(f"epoch {epoch + 1}: {line}")

    def _periodically(self, progress: Progress) -> None:
        """Verification and checkpoint, where the configuration wants them after this step."""
        verify = bool(self.bins) and self._due(self.config.verbose or self.steps_per_epoch)
        results = self._verify(progress) if verify else None
        if self.saver.after_step(self.step_number, self.requests, results):
            progress.event(self.step_number, stall_seconds=round(self.saver.stall, 3))

    def _finish(self, progress: Progress) -> dict[str, dict[str, float]]:
        """The last checkpoint and verification; results.json, the ROC and the table."""
        self.saver.save(self.step_number, wait=True)
        results = self._verify(progress) if self.bins else {}
        self.saver.at_end(self.step_number, results)
        if self.world.is_first:
            write_results(self.output / "results.json", results)
            if results:
                pictures = save_figure(draw_roc(self._curves), self.output / "plots" / "roc")
                progress.say(str(verification_table(results)))
                progress.say(f"plots: {', '.join(map(str, pictures))}")
            progress.say(f"results: {self.output / 'results.json'}")
        dist.barrier()
        return results

    def _leave(self, progress: Progress) -> dict[str, dict[str, float]]:
        """Saves and says so, because a signal asks the run to stop."""
        self.saver.save(self.step_number, wait=True)
        folder = store.folder_of(self.output, self.step_number)
        why = interruption.names_of(self.requests)
        progress.event(self.step_number, stopped_by=why)
        progress.say(f"{why}: step {self.step_number} of {self.total_steps} is saved in {folder}; the same command goes on there")
        return {}

    # -------------------------------------------------------------------------------------------- parts

    def _due(self, every: int) -> bool:
        return self.step_number % every == 0 or self.step_number == self.total_steps

    def _prepare_step(self) -> None:
        """What depends on the step's number alone: random numbers of dropout and the like, partition, learning rate."""
        torch.manual_seed(seed_for(self.config.seed, self.step_number, self.world.rank))
        self.joint.partition = self.schedule.partition(self.step_number)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.learning_rate(self.step_number)

    def _mind_unreadable(self, result: StepResult, batches: list[DeviceBatch], progress: Progress) -> None:
        """Lists the damaged records that any rank left out of the step; all ranks know their number from the labels."""
        if result.unreadable:
            count = self.unreadable.add([fault for batch in batches for fault in batch.skipped])
            progress.event(self.step_number, unreadable_records=count)

    def _mind_verdict(self, why: str, progress: Progress) -> None:
        """Told of every step, once it is known: why it was skipped, or nothing. That may be while the next one is under way."""
        if not why:
            self.skipped_in_a_row = 0
            self.not_finite.forget()
            return
        self.skipped_in_a_row += 1
        self.not_finite.skipped(why)
        step = self.not_finite.last_step
        progress.say(f"step {step}: skipped on all ranks, {why}")
        progress.event(step, skipped=why)
        if self.skipped_in_a_row >= self.config.max_skipped:
            advice = (
                f"check the disk and the files in {self.unreadable.path}"
                if "damaged" in why
                else ("lower lr, or use precision=fp32")
            )
            self.not_finite.write(self.config.seed, self.config.batch_size)
            raise UserError(
                f"step {step}: {why}, {self.skipped_in_a_row} steps in a row (max_skipped); their batches "
                f"are listed in {self.not_finite.path}; the last checkpoint is "
                f"{next(iter(store.complete_checkpoints(self.output)), None)}; {advice}"
            )

    def _report(self, result: StepResult, progress: Progress) -> None:
        if not progress.active:
            return
        numbers = {**result.figures(self.joint.quality), "lr": self.optimiser.param_groups[0]["lr"]}
        images_per_step = self.config.batch_size * self.world.size * self.config.gradient_acc
        progress.steps(self.step_number, self.step_number / self.steps_per_epoch, images_per_step, numbers)

    def _verify(self, progress: Progress) -> dict[str, dict[str, float]]:
        self.train_step.settle()
        dist.broadcast_buffers(self.encoder)

        def keep_curve(name: str, result: TenFold) -> None:
            self._curves[name] = result.roc

        with progress.clock_stopped():
            results = verify_bins(self.embed, self.bins, self.config.val_batch_size, keep_curve)
        progress.verification(self.step_number, results)
        if self.step_number < self.total_steps:
            accuracies = "  ".join(f"{name} {100 * metrics['accuracy']:.2f} %" for name, metrics in results.items())
            progress.say(f"step {self.step_number:>6}: verification  {accuracies}")
        return results

    def _capture(self) -> store.Checkpoint:
        self.train_step.settle()
        captured = state.capture(self.encoder, self.joint, self.optimiser, self.loss_scale, self.momentum_encoder)
        counters = {
            "skipped_in_a_row": self.skipped_in_a_row,
            "global_batch": self.config.batch_size * self.world.size,
        }
        return store.Checkpoint(captured.tensors, {**captured.values, **counters, **self.saver.values})

    def _resume(self) -> list[str]:
        """Goes on from the newest sound checkpoint of the output folder, if there is one; then returns what to say of it."""
        notes: list[str] = []
        if not self.config.resume:
            return notes
        folder = store.newest_on_all_ranks(self.output, notes.append)
        if folder is None:
            return notes
        refuse_changed_settings(folder, self.config, self.world.size)
        loaded = store.load(folder)
        state.restore(loaded, self.encoder, self.joint, self.optimiser, self.loss_scale, self.momentum_encoder)
        self.step_number, self.skipped_in_a_row = loaded.values["step"], loaded.values["skipped_in_a_row"]
        self.saver.restore(self.step_number, loaded.values)
        dist.on_first_rank(lambda: store.set_aside_after(self.output, folder))
        return [*notes, f"resumed from {folder}"]

    def _begin(self) -> list[str]:
        """A run from its start: initial weights, and no traces of an earlier run in the way."""
        dist.on_first_rank(lambda: refuse_used_output(self.output))
        if not self.config.init_from:
            return []
        note = initialise(self.encoder, self.config)
        if self.momentum_encoder is not None:
            self.momentum_encoder.start_from(self.encoder)
        return [note]

    def _distributed_encoder(self) -> nn.parallel.DistributedDataParallel:
        encoder = torch.compile(self.encoder) if self.config.compile else self.encoder
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(encoder, device_ids=devices, gradient_as_bucket_view=True)

    def _prepare_output(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(f"{self.output}: cannot be written ({fault.strerror}); set output= to a writable folder") from fault
        self.lock.take()

    def _introduce(self, progress: Progress, start: list[str]) -> None:
        config, world = self.config, self.world
        where = f"{world.size} GPU(s)" if world.device.type == "cuda" else f"the CPU (no GPU found), {world.size} process(es)"
        number = "fp32" if self.autocast is None else str(self.autocast).removeprefix("torch.")
        parameters = sum(p.numel() for p in self.encoder.parameters())
        progress.say(
            f"{config.network}: {parameters / 1e6:.1f} M parameters, {backbones.flops(self.encoder) / 1e9:.2f} GMACs; "
            f"{number} on {where}"
        )
        progress.say(
            f"{config.rec}: {config.num_image} images, {config.num_classes} classes; {config.batch_size} x {world.size} x "
            f"{config.views} view(s) a step, {self.steps_per_epoch} steps an epoch, {self.total_steps} in all; "
            f"output {self.output}"
        )
        if self.class_gaps:
            progress.say(self.class_gaps)
        for note in start:
            progress.say(note)
            progress.event(self.step_number, note=note)
