"""A training run: from its configuration to its final table."""

from __future__ import annotations

from pathlib import Path

import torch

from eval.embedding import check_bins, verify_bins
from eval.present.plots import draw_roc
from eval.present.style import save_figure
from eval.present.tables import operating_table, verification_table, write_results
from eval.roc import Roc
from eval.verification import TenFold
from recognition import build, signals
from recognition.checkpoints import store
from recognition.checkpoints.resume import check_changes, refuse_used_output, take_output
from recognition.checkpoints.saver import Saver
from recognition.checkpoints.state import capture, restore
from recognition.data.dataset import FaceDataset
from recognition.data.fingerprint import fingerprint
from recognition.data.prefetch import DeviceBatch, Prefetcher
from recognition.encoders.build import initialise
from recognition.encoders.embedder import Embedder, autocast_type
from recognition.encoders.teacher import build_teacher
from recognition.encoders.thresholds import EMA_SUFFIX
from recognition.fine_tuning import start_classifier
from recognition.monitor.diagnostics import Diagnostics
from recognition.monitor.environment import record_start
from recognition.monitor.hooks import Hooks
from recognition.monitor.overview import overview
from recognition.monitor.progress import Progress, verification_history
from recognition.monitor.skipped import DamagedRecords, SkippedSteps
from recognition.monitor.trackers import TENSORBOARD, build_trackers
from recognition.monitor.verification_time import VerificationTime
from recognition.schedule import Schedule
from recognition.sharding import gathered
from recognition.step import ALL_DAMAGED, StepResult
from utils import dist
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.randomness import seed_for

Results = dict[str, dict[str, float]]
"""Verification set -> metric -> value."""


class Trainer:
    """Builds a run, which resumes if its output folder holds a checkpoint; `run` trains, verifies and saves."""

    def __init__(self, config: Config, world: World):
        # Data. The loader forks its workers, so it comes before everything that starts a thread.
        dataset = build.open_dataset(config)
        config = build.resolve_config(config, dataset, world.size)
        self.config, self.world = config, world
        self.bins = build.verification_sets(config)
        self.loader = build.build_loader(config, dataset, world)
        unlabelled = self.loader.maker.unlabelled
        self.prefetcher = Prefetcher(world.device, self.loader.slots, keep=config.gradient_acc > 1)
        self.data_fingerprint = fingerprint(dataset, unlabelled)
        metrics = check_bins(self.bins)
        if config.ema:
            metrics |= {name + EMA_SUFFIX: measured for name, measured in metrics.items()}
        self.verified = metrics.keys()  # names in the results
        self.teacher = build_teacher(config, world.device)
        self.data_notes = build.data_notes(config, dataset, unlabelled)

        # What is trained, how long and how fast.
        self.state = build.build_train_state(config, world, dataset)
        self.schedule = Schedule(config, len(self.loader), self.state.joint.partition)
        self.total_steps, self.steps_per_epoch = self.schedule.total_steps, self.schedule.steps_per_epoch

        # Output folder. Workers that are forked later would keep the lock after this process has ended.
        self.output = Path(config.output)
        self.saver = Saver(self.output, config, metrics, self.steps_per_epoch, self._capture)
        self.lock = signals.RunLock(self.output)
        dist.on_first_rank(self.lock.take)
        self.damaged_records = DamagedRecords(self.output)
        self.skipped_steps = SkippedSteps(self.output, self.loader.maker.record, config.max_skipped)

        autocast = autocast_type(config.precision, world.device)
        self.embed = Embedder(self.state.encoder, world.device, config.channel_order, autocast)
        self.embedders = {"": self.embed}  # what is verified: suffix of the names in the results -> encoder
        if self.state.ema is not None:
            self.embedders[EMA_SUFFIX] = Embedder(self.state.ema.copy, world.device, config.channel_order, autocast)

        # Where the run starts: at its newest checkpoint, from the weights of `init_from`, or from random weights.
        self.step_number = 0
        self.owes_verification = False  # of the checkpoint that the run resumes from; it is saved before
        self.start_notes = self._resume() or self._start_anew(dataset)
        if self.step_number < self.total_steps:
            dist.on_first_rank(lambda: take_output(self.output, config))
        record_start(self.output, self.step_number, world.device)

        # The step, and what watches it.
        self.train_step = build.build_train_step(config, world, self.state, self._handle_outcome, self.teacher)
        self.first_step = self.step_number
        has_board = TENSORBOARD in config.trackers
        self.progress = Progress(self.output, world.is_first, self.total_steps, self.step_number, has_board)
        self.hooks = Hooks(config.hooks, world.is_first, build_trackers(config))
        self.diagnostics = Diagnostics(config, self.train_step, self.progress, self.steps_per_epoch, self.step_number)
        self.signals = signals.StopSignals(verbose=world.is_first)
        self.contrasted = torch.zeros((), device=world.device)  # sum over the steps of the share of pairs
        self.requests = 0  # of all ranks, after the last step
        self._curves: dict[str, Roc] = {}

    # -------------------------------------------------------------------------------------------- the run

    def run(self) -> Results:
        """Train to the end, or until a signal asks to stop; return the final verification ({} if stopped)."""
        self.verification_time = VerificationTime(1.0 if self.config.verbose else self.config.verify_share)
        with self.progress, self.signals:
            if self.world.size > 2:
                self.train_step.fix_bucket_order(self.config.views, self.config.batch_size)
            self._print_overview()
            self.hooks("start", self.config, self.output)
            if self.owes_verification and self.step_number < self.total_steps:
                self._verify_and_mark()
            while self.step_number < self.total_steps and not self._is_stopping:
                self._train_epoch()
            self.train_step.finish_step()
            results = self._finish() if self.step_number == self.total_steps else self._stop()
            self.hooks("checkpoint", self.step_number, store.folder_of(self.output, self.step_number))
            self.hooks("end", self.step_number, results)
        self.prefetcher.close()
        self.loader.close()
        self.lock.release()
        return results

    def _train_epoch(self) -> None:
        """Train from the current step to the end of its epoch, or of the run."""
        epoch, done = divmod(self.step_number, self.steps_per_epoch)
        end = min(self.total_steps, (epoch + 1) * self.steps_per_epoch)
        accumulate = self.config.gradient_acc
        batches = self.prefetcher(self.loader.epoch(epoch, start=done * accumulate))
        self.state.encoder.train()
        try:
            while self.step_number < end and not self._is_stopping:
                # Random numbers, learning rate and partition: functions of the step number.
                self._prepare_step()

                # One step.
                step_batches = [next(batches) for _ in range(accumulate)]
                first_batch = (self.step_number - epoch * self.steps_per_epoch) * accumulate
                grades_G = self._grades(epoch, first_batch)
                result = self.train_step(step_batches, self.signals.requests | self.saver.request, grades_G)
                self.requests = result.requests
                self.contrasted += result.contrasted
                self.step_number += 1
                self.skipped_steps.started(self.step_number, epoch, first_batch, step_batches)

                # Reports.
                if result.damaged_records:
                    self._record_damage(step_batches)
                self.diagnostics.after_step(self.step_number, step_batches[-1], grades_G[-1] if grades_G else None)
                if self._is_due(self.config.frequent) and not self.train_step.finish_step():
                    self._report(result)

                # Checkpoint and verification; `_finish` does those of the last step.
                if self.step_number < self.total_steps:
                    self._save_and_verify()
        finally:
            batches.close()
        if line := self.damaged_records.epoch_summary():
            self.progress.say(f"epoch {epoch + 1}: {line}")

    def _finish(self) -> Results:
        """Save and verify after the last step; write results.json and the ROC curves, print the table."""
        self.saver.save(self.step_number, wait=True)
        results = self._verify() if self.bins else {}
        self.saver.after_verification(self.step_number, results)
        steps = self.step_number - self.first_step
        if steps and self.config.queue != "none" and not self.contrasted.item():
            nothing = "nothing with a label" if self.config.unlabelled else "nothing"
            self.progress.say(
                f"warning: {nothing} was contrasted in {steps} steps: no view was of low quality; raise quality_threshold "
                f"({self.config.quality_threshold}), train longer than the warm-up, or use a stronger augmentation"
            )
        if not self.bins:
            self.progress.say(
                "nothing was verified: val_targets is empty; next: "
                f"python -m eval verify --checkpoint {self.output} --bins lfw.bin"
            )
        if self.world.is_first:
            write_results(self.output / "results.json", results)
            if results:
                pictures = save_figure(draw_roc(self._curves), self.output / "plots" / "roc")
                self.progress.say(f"{verification_table(results)}\n{operating_table(results)}")
                self.progress.say(f"plots: {', '.join(map(str, pictures))}")
            self.progress.say(f"results: {self.output / 'results.json'}")
        dist.barrier()
        return results

    def _stop(self) -> Results:
        """Save and report it, because a signal asked the run to stop."""
        self.saver.save(self.step_number, wait=True)
        folder = store.folder_of(self.output, self.step_number)
        names = signals.names_of(self.requests)
        self.progress.event(self.step_number, stopped_by=names)
        done = f"step {self.step_number} of {self.total_steps}"
        self.progress.say(f"{names}: {done} is saved in {folder}; run the same command to resume")
        return {}

    # -------------------------------------------------------------------------------------------- parts of a step

    @property
    def _is_stopping(self) -> bool:
        return bool(self.requests & signals.STOP)

    def _is_due(self, every: int) -> bool:
        return self.step_number % every == 0 or self.step_number == self.total_steps

    def _prepare_step(self) -> None:
        torch.manual_seed(seed_for(self.config.seed, self.step_number, self.world.rank))
        self.state.joint.partition = self.schedule.partition(self.step_number)
        for group in self.state.optimiser.param_groups:
            group["lr"] = group["rate"] * self.schedule.learning_rate(self.step_number)

    def _grades(self, epoch: int, first_batch: int) -> list[torch.Tensor] | None:
        """The grade of each augmented view in the batches of a step, on all ranks, for partition="scale"."""
        if self.config.partition != "scale":
            return None
        batches = range(first_batch, first_batch + self.config.gradient_acc)
        return [torch.from_numpy(self.loader.maker.scale_draws(epoch, number)) for number in batches]

    def _record_damage(self, batches: list[DeviceBatch]) -> None:
        """List the damaged records of the step. Collective: all ranks know from the labels that there are some."""
        count = self.damaged_records.add([fault for batch in batches for fault in batch.skipped])
        self.progress.event(self.step_number, unreadable_records=count)

    def _handle_outcome(self, skip_reason: str) -> None:
        """Called once per step, possibly during the next one, with the reason for which it was skipped ("" if applied)."""
        if not skip_reason:
            self.skipped_steps.applied()
            return
        step = self.skipped_steps.skipped(skip_reason)
        self.progress.say(f"step {step}: skipped on all ranks, {skip_reason}")
        self.progress.event(step, skipped=skip_reason)
        if self.skipped_steps.in_a_row >= self.config.max_skipped:
            self._give_up(step, skip_reason)

    def _give_up(self, step: int, skip_reason: str) -> None:
        """End the run after too many skipped steps in a row."""
        check_the_disk = f"check the disk and the files in {self.damaged_records.path}"
        advice = check_the_disk if skip_reason == ALL_DAMAGED else "lower lr, or use precision=fp32"
        last_checkpoint = next(iter(store.complete_checkpoints(self.output)), None)
        self.skipped_steps.write(self.config.seed, self.config.batch_size)
        raise UserError(
            f"step {step}: {skip_reason}, {self.skipped_steps.in_a_row} steps in a row (max_skipped); their batches are listed "
            f"in {self.skipped_steps.path}; the last checkpoint is {last_checkpoint}; {advice}"
        )

    def _report(self, result: StepResult) -> None:
        if not self.progress.active:
            return
        figures = result.figures(self.state.joint.quality)
        values = {**figures, "lr": self.state.optimiser.param_groups[0]["lr"]}
        images_per_step = self.config.batch_size * self.world.size * self.config.gradient_acc
        epoch = self.step_number / self.steps_per_epoch
        self.hooks("step", self.step_number, values)
        self.progress.steps(self.step_number, epoch, images_per_step, values, self._verification_left)

    # -------------------------------------------------------------------------------------------- verification, checkpoints

    def _save_and_verify(self) -> None:
        """Save and verify if it is time to. In this order: a verification that fails costs no checkpoint."""
        if self.saver.after_step(self.step_number, self.requests):
            self.progress.event(self.step_number, stall_seconds=round(self.saver.stall, 3))
            self.hooks("checkpoint", self.step_number, store.folder_of(self.output, self.step_number))
        if self._verification_is_due and dist.on_first_rank(self.verification_time.is_affordable):
            self._verify_and_mark()

    @property
    def _verification_is_due(self) -> bool:
        return bool(self.bins) and self._is_due(self._verify_every)

    @property
    def _verify_every(self) -> int:
        return self.config.verbose or self.steps_per_epoch

    def _verification_left(self, training_seconds: float) -> float:
        """Seconds that the remaining verifications will take, given the remaining seconds of training."""
        last = self.total_steps % self._verify_every != 0
        count = self.total_steps // self._verify_every - self.step_number // self._verify_every + last
        return self.verification_time.left(count if self.bins else 0, training_seconds)

    def _verify_and_mark(self) -> None:
        """Verify, and mark the checkpoint if it is the best."""
        try:
            results = self._verify()
        except UserError:
            self.saver.save(self.step_number, wait=True)
            raise
        self.saver.after_verification(self.step_number, results)

    def _verify(self) -> Results:
        self.train_step.finish_step()
        results: Results = {}
        with self.progress.clock_stopped(), self.verification_time.measured(), gathered(self.state.encoder):
            for suffix, embed in self.embedders.items():
                dist.broadcast_buffers(embed.encoder)

                def keep_curve(name: str, result: TenFold, suffix: str = suffix) -> None:
                    self._curves[name + suffix] = result.roc

                found = verify_bins(embed, self.bins, self.config.val_batch_size, keep_curve)
                results |= {name + suffix: metrics for name, metrics in found.items()}
        self.progress.verification(self.step_number, results)
        self.hooks("verification", self.step_number, results)
        if self.step_number < self.total_steps:
            accuracies = "  ".join(f"{name} {100 * metrics['accuracy']:.2f} %" for name, metrics in results.items())
            self.progress.say(f"step {self.step_number:>6}: verification  {accuracies}")
        return results

    def _capture(self) -> store.Checkpoint:
        """The complete state of the run, for a checkpoint. Collective."""
        self.train_step.finish_step()
        captured = capture(self.state)
        counters = {
            "skipped_in_a_row": self.skipped_steps.in_a_row,
            "global_batch": self.config.batch_size * self.world.size,
            "data": self.data_fingerprint,
        }
        return store.Checkpoint(captured.tensors, {**captured.values, **counters, **self.saver.values})

    # -------------------------------------------------------------------------------------------- start

    def _resume(self) -> list[str]:
        """Continue from the newest undamaged checkpoint of the output folder, if there is one; return notes for the user."""
        notes: list[str] = []
        if not self.config.resume:
            return notes
        folder = store.newest_on_all_ranks(self.output, lambda text: notes.append(f"warning: {text}"))
        if folder is None:
            return notes
        notes += check_changes(folder, self.config, self.world.size, self.data_fingerprint, self.total_steps)
        values = restore(folder, self.state)
        self.step_number, self.skipped_steps.in_a_row = values["step"], values["skipped_in_a_row"]
        history = dist.on_first_rank(lambda: verification_history(self.output))
        self.saver.restore(self.step_number, values, history)
        self.owes_verification = self._verification_is_due and not self.verified <= history.get(self.step_number, {}).keys()
        dist.on_first_rank(lambda: store.set_aside_after(self.output, folder))
        return [*notes, f"resumed from {folder}"]

    def _start_anew(self, dataset: FaceDataset) -> list[str]:
        """Refuse a used output folder; load what `init_from` and `head_from` name; return notes for the user."""
        dist.on_first_rank(lambda: refuse_used_output(self.output))
        if not self.config.init_from:
            return []
        note = initialise(self.state.encoder, self.config)
        for follower in self.state.followers.values():
            follower.start_from(self.state.encoder)
        with gathered(self.state.encoder):
            return [note, *start_classifier(self.state.joint.classifier, self.config, dataset, self.embed)]

    def _print_overview(self) -> None:
        config, encoder = self.config, self.state.encoder
        self.progress.say(str(overview(config, self.world, encoder, self.embed.precision, self.schedule)))
        for note in self.data_notes:
            self.progress.say(note)
        for note in self.start_notes:
            self.progress.say(note)
            self.progress.event(self.step_number, note=note)
