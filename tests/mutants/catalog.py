"""The mutants: a place in the source, what stands there, what is put in its place, and the tests
that are to find it. The text must occur exactly once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str


def _admission(name: str, old: str, new: str = "False") -> Mutant:
    file, tests = "federation/admission.py", "tests/federation/test_admission.py"
    return Mutant(f"admission: {name}", file, old, new, tests)


def _gate(name: str, old: str, new: str) -> Mutant:
    file = "federation/evaluation/promotion_gate.py"
    return Mutant(f"gate: {name}", file, old, new, "tests/federation/evaluation")


def _uplink(name: str, old: str, new: str) -> Mutant:
    file = "edge_client/uplink/uplink.py"
    return Mutant(f"uplink: {name}", file, old, new, "tests/edge_client/uplink/test_uplink.py")


def _stage(name: str, old: str, new: str) -> Mutant:
    file, tests = "federation/rollout/stage_policy.py", "tests/federation/rollout"
    return Mutant(f"canary: {name}", file, old, new, tests)


def _rollout(name: str, old: str, new: str) -> Mutant:
    file, tests = "federation/rollout/rollout.py", "tests/federation/rollout/test_pause.py"
    return Mutant(f"rollout: {name}", file, old, new, tests)


def _worker(name: str, file: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant(
        f"worker: {name}", f"streams/worker/{file}", old, new, f"tests/streams/worker/{tests}"
    )


def _aggregation(name: str, file: str, old: str, new: str) -> Mutant:
    file, tests = f"federation/rounds/{file}", "tests/federation/rounds/test_aggregation.py"
    return Mutant(f"aggregation: {name}", file, old, new, tests)


def _records(name: str, file: str, old: str, new: str) -> Mutant:
    file, tests = f"streams/contract/events/{file}", "tests/streams/contract/test_records.py"
    return Mutant(f"records: {name}", file, old, new, tests)


MUTANTS = [
    _admission("NaN is taken", "not np.isfinite(tensor).all()"),
    _admission("norm is not checked", "not found <= NORM_FACTOR * usual"),
    _admission("the first updates may be of any norm", "not found <= UNKNOWN_FACTOR * sent"),
    _admission("a replay is taken", "update.digest in expected.earlier"),
    _admission("shape is not checked", "found.shape != tensor.shape"),
    _admission("a negative variance is taken", "(tensor < 0).any()"),
    _admission("a device counts twice", "update.device in expected.devices"),
    _admission("any number of samples is taken", "not 1 <= update.samples <= MAX_SAMPLES"),
    Mutant(
        "admission: any claim counts in full",
        "federation/rounds/update_intake.py",
        "if update.samples > limit else update",
        "if False else update",
        "tests/federation/rounds/test_run.py",
    ),
    Mutant(
        "gate: any device counts with all its rows",
        "federation/evaluation/device_metrics.py",
        "if of <= most:",
        "if True:",
        "tests/federation/evaluation/test_device_metrics.py",
    ),
    Mutant(
        "admission: strikes have no consequence",
        "federation/admission.py",
        "if self.strikes[node] >= STRIKES:",
        "if False:",
        "tests/federation/test_admission.py",
    ),
    Mutant(
        "acceptance: an old decision is taken again",
        "streams/runtime/trust.py",
        "decision.seq <= before.seq",
        "False",
        "tests/streams/runtime",
    ),
    Mutant(
        "decisions: a revoked key counts",
        "streams/contract/decisions.py",
        "if key in self.revoked:",
        "if False:",
        "tests/streams/runtime",
    ),
    Mutant(
        "decisions: a good key trusts a revoked one again",
        "streams/contract/decisions.py",
        "if back := sorted(self.revoked - set(decision.standing.revoked)):",
        "if back := sorted(set()):",
        "tests/federation/registry/test_stolen_key.py",
    ),
    Mutant(
        "registry: a decision beside a lost one is announced",
        "federation/registry/restoring.py",
        "if not lost or (newest := lost[-1].decision.seq) + 1 < last:",
        "if (newest := 0) == 0:",
        "tests/federation/registry/test_restoring.py",
    ),
    Mutant(
        "registry: decisions of others are restored",
        "federation/registry/restoring.py",
        "and _is_signed(release, signer, own, registry.task)\n    ]",
        "]",
        "tests/federation/registry/test_restoring.py",
    ),
    Mutant(
        "acceptance: a break in the chain is taken",
        "streams/runtime/trust.py",
        "decision.prev != before.digest",
        "False",
        "tests/streams/runtime",
    ),
    Mutant(
        "download: a teacher's bytes are not compared with their digest",
        "streams/kafka/artifact_download.py",
        "if hashlib.sha256(data).hexdigest() != want.sha256:",
        "if False:",
        "tests/streams/worker/windows/test_teacher_updates.py",
    ),
    Mutant(
        "history: a decision that does not follow is taken",
        "federation/registry/history.py",
        "if decision.seq != len(self._read) + 1 or decision.prev != before:",
        "if False:",
        "tests/federation/registry/test_object_store.py",
    ),
    Mutant(
        "history: an altered decision is not read again",
        "federation/registry/history.py",
        "if (entry.name, entry.tag) != now:",
        "if entry.name != now[0]:",
        "tests/federation/registry/test_object_store.py",
    ),
    Mutant(
        "admission: other devices decide in a private run",
        "federation/admission.py",
        "if not expected.clip and expected.earlier and update",
        "if expected.earlier and update",
        "tests/federation/rounds/test_privacy.py",
    ),
    Mutant(
        "supernode: a run that did not invite the device is answered",
        "edge_client/supernode.py",
        "if settings.runs and run not in settings.runs:",
        "if settings.runs and not run:",
        "tests/federation/test_hostile_app.py",
    ),
    Mutant(
        "batches: a strange header name stops a reader",
        "streams/kafka/patches.py",
        "        except UnicodeDecodeError:\n            plain_names",
        "        except ZeroDivisionError:\n            plain_names",
        "tests/streams/kafka/test_poison.py",
    ),
    Mutant(
        "replay: a restart begins anew",
        "edge_client/sources/replay.py",
        "cut.mark_us > self._resume",
        "True",
        "tests/edge_client/sources/test_replay.py",
    ),
    Mutant(
        "replay: segments of one time have one mark",
        "edge_client/sources/replay.py",
        "max(mark + 1, last + moved)",
        "last + moved",
        "tests/edge_client/sources/test_every_reading.py",
    ),
    Mutant(
        "replay: pauses are waited for",
        "edge_client/sources/replay.py",
        "if gap_us > self.task.max_gap_us or self._late > MOST_LATE:",
        "if self._late > MOST_LATE:",
        "tests/edge_client/sources/test_replay.py",
    ),
    Mutant(
        "replay: a late event sets the pace of those after it",
        "edge_client/sources/replay.py",
        "if self.speed > 0 and cut.last_us >= latest_us:",
        "if self.speed > 0:",
        "tests/edge_client/sources/test_replay.py",
    ),
    Mutant(
        "rate limit: a long pause is caught up in a burst",
        "edge_client/uplink/pacing.py",
        "min(filled, self.bytes_per_s * BURST_S), now",
        "filled, now",
        "tests/edge_client/uplink/test_rate_limit.py",
    ),
    Mutant(
        "spool: checksums are not checked",
        "edge_client/spool/frames.py",
        "crc32(payload, crc32(head[_HEAD.size :])) != checksum",
        "False",
        "tests/edge_client/spool",
    ),
    _uplink(
        "a refused batch is settled as delivered", "if entry.failed or entry.refused:", "if False:"
    ),
    _uplink("nothing bounds what is in flight", "len(self._flight) >= IN_FLIGHT", "False"),
    _uplink(
        "a stuck producer is kept", "if waiting and self._clock()", "if False and self._clock()"
    ),
    _uplink(
        "acknowledged frames are not settled",
        "            self._settle_frames(done)\n            self._reached",
        "            self._reached",
    ),
    Mutant(
        "uplink: an event that is declared in place of being sent counts as delivered",
        "edge_client/spool/cursor.py",
        "for entry in inside if frame.kind == EVENTS else",
        "for entry in [] if frame.kind == EVENTS else",
        "tests/edge_client/uplink/test_refusals.py",
    ),
    Mutant(
        "uplink: the queues of an earlier task version are not sent",
        "edge_client/uplink/task_queues.py",
        "if found.folder == queue_folder(folder, found.kind, task):",
        "if True:",
        "tests/edge_client/uplink/test_task_queues.py",
    ),
    Mutant(
        "topics: the versions of a task share them",
        "streams/contract/topics.py",
        'return f"{name}.v{version}"',
        "return name",
        "tests/edge_client/uplink/test_task_queues.py",
    ),
    Mutant(
        "acceptance: a key that another task version has revoked is trusted",
        "streams/runtime/trust.py",
        "self._barred |= {*other.revoked}",
        "self._barred |= set()",
        "tests/streams/runtime/test_acceptance.py",
    ),
    Mutant(
        "events: rows of other columns are taken",
        "streams/contract/events/records.py",
        "if digest != layout.digest:",
        "if False:",
        "tests/streams/contract/test_records.py",
    ),
    Mutant(
        "events: what follows the rows of a body is ignored",
        "streams/contract/events/compact.py",
        "body.number(), body.text()\n    body.end()\n",
        "body.number(), body.text()\n",
        "tests/streams/contract/test_records.py",
    ),
    Mutant(
        "releases: a delivery may announce any size",
        "streams/contract/decisions.py",
        "self.size > most",
        "False",
        "tests/edge_client/test_bounds.py",
    ),
    _worker(
        "lateness is ignored",
        "windows/tumbling.py",
        " - self.task.lateness_us",
        "",
        "windows",
    ),
    _worker(
        "a silent device's windows stay open",
        "windows/tumbling.py",
        "if now_s - self.heard_s >= self.task.idle_close_s:",
        "if False:",
        "windows",
    ),
    _worker(
        "a session that silence closed does not continue",
        "windows/cut.py",
        "window.starts(times[late:], closed)",
        "window.starts(times[late:])",
        "windows",
    ),
    _worker(
        "an open session does not continue",
        "windows/cut.py",
        "self.task.window.starts(times, last)",
        "self.task.window.starts(times)",
        "windows",
    ),
    _worker(
        "a late event of the last closed session begins another",
        "windows/cut.py",
        "np.full(late - older, closed.start_us)",
        "window.starts(times[older:late]) if late > older else times[:0]",
        "windows",
    ),
    _worker(
        "messages are acknowledged before they are sealed",
        "windows/partition.py",
        "self._messages[0].unsealed == 0",
        "True",
        "commit",
    ),
    _worker(
        "events that come again are scored again",
        "windows/partition.py",
        "taken.missing(events.first, events.last)",
        "IntervalSet().missing(events.first, events.last)",
        "commit",
    ),
    _worker(
        "other events with counted numbers are taken for repeats",
        "windows/partition.py",
        "if not placed and new != [(events.first, events.last)]:",
        "if False:",
        "test_bad_input.py",
    ),
    _worker(
        "messages are acknowledged before their rows are stored",
        "commit/committer.py",
        "                rows = await self._call(self._stored, work, batch)  # step 2\n",
        "                self._seal(work, batch)\n                await self._acknowledge()\n"
        "                rows = await self._call(self._stored, work, batch)\n",
        "commit",
    ),
    _worker(
        "what an earlier teacher has evaluated ahead is stored as the new one's",
        "windows/scoring_step.py",
        "if found.teacher == self.teacher:",
        "if True:",
        "commit/test_committer.py",
    ),
    _worker(
        "what was evaluated ahead is stored after a rebalance",
        "windows/scoring_step.py",
        "        self._ahead = None\n        self._reports.clear()\n",
        "        self._reports.clear()\n",
        "commit/test_committer.py",
    ),
    _worker(
        "the fence is open",
        "store/delta_store.py",
        "if found != version - 1:",
        "if False:",
        "store",
    ),
    _worker(
        "a label that replaces another counts beside it",
        "store/late_labels.py",
        "coalesce(counted.label, own.label) as before",
        "own.label as before",
        "commit/test_label_revisions.py",
    ),
    _worker(
        "an event that comes after its label has none in reports",
        "store/late_labels.py",
        "if upto.events > since.events:",
        "if False:",
        "commit/test_label_revisions.py",
    ),
    _worker(
        "reports of labels that were stored are not published by the next worker",
        "commit/label_revisions.py",
        "if commit := position.commits[REVISED]:",
        "if commit := 0:",
        "commit/test_label_revisions.py",
    ),
    _worker(
        "labels that come again are stored again",
        "windows/partition.py",
        "known.missing(batch.first, batch.last)",
        "IntervalSet().missing(batch.first, batch.last)",
        "commit",
    ),
    _worker(
        "events without numbers are stored again",
        "windows/partition.py",
        "list(IntervalSet(new).minus(self.position.placed))",
        "new",
        "commit/test_committer.py",
    ),
    _worker(
        "live events from the future are believed",
        "windows/tumbling.py",
        'ANY_TIME if task.source == "recorded" else',
        "ANY_TIME if True else",
        "test_bad_input.py",
    ),
    _records("rows are not checked", "records.py", "    _check_values(task, events.columns)\n", ""),
    Mutant(
        "records: compact rows are not checked",
        "streams/contract/events/records.py",
        "    _check_values(task, columns)\n",
        "",
        "tests/streams/contract/test_records.py",
    ),
    _records(
        "lists of any length are taken", "batches.py", "if (lengths != size).any():", "if False:"
    ),
    _records("types are not compared", "batches.py", "if have.equals(want) or", "if True or"),
    _stage(
        "a bad version is never rolled back", 'if worse >= evidence["bound_worse"]:', "if False:"
    ),
    _stage("any number of windows is enough", " and stage >= rules.minimum_windows", ""),
    _stage("an undecided stage waits for ever", "if waited_s > rules.max_wait_s:", "if False:"),
    _rollout("a pause ends by itself", 'case "go-on" if not paused:', 'case "go-on":'),
    _rollout(
        "a run starts in a pause",
        "if desired.candidate is not None or desired.paused is not None:",
        "if desired.candidate is not None:",
    ),
    _gate("no margin is asked for", "if rows.gain < rules.margin - ROUNDING:", "if False:"),
    _gate(
        "held-out devices may lose", "elif rows.gain < -rules.tolerance - ROUNDING:", "elif False:"
    ),
    _gate("chance is no objection", "elif not proven:", "elif False:"),
    _gate("a cohort may lose", "    against += _worse_cohorts(evidence, rules)\n", ""),
    Mutant(
        "top_k: one output too many counts",
        "streams/contract/task/metrics.py",
        'kind="stable")[:, :k]',
        'kind="stable")[:, : k + 1]',
        "tests/streams/contract/test_metrics.py",
    ),
    Mutant(
        "segments: without a share the label is that of most readings",
        "streams/segments/segmentation.py",
        "if task.targets or not task.segment.label_share:",
        "if task.targets:",
        "tests/streams/contract/test_task.py",
    ),
    Mutant(
        "gate: a greater error is a gain",
        "streams/contract/task/metrics.py",
        "np.clip((base - new) / most",
        "np.clip((new - base) / most",
        "tests/streams/contract/test_metrics.py",
    ),
    Mutant(
        "gate: one unit is enough to prove a gain",
        "federation/evaluation/paired.py",
        "np.array(drawn) >= found - NEAR",
        "np.array(drawn) > found + NEAR",
        "tests/federation/evaluation",
    ),
    _aggregation("the median is the mean", "strategies.py", "np.median(", "np.mean("),
    _aggregation(
        "nothing is trimmed",
        "strategies.py",
        "kept = slice(cut, len(moves) - cut)",
        "kept = slice(None)",
    ),
    _aggregation(
        "Krum takes the farthest", "strategies.py", "np.argsort(scores(", "np.argsort(-scores("
    ),
    _aggregation(
        "samples have no cap",
        "aggregator.py",
        "Move(tensors, min(update.samples, SAMPLES_CAP))",
        "Move(tensors, update.samples)",
    ),
    Mutant(
        "up: dropped events are no failure",
        "compose/reports/summary.py",
        "or too_many_dropped(self.devices)",
        "",
        "tests/compose/reports/test_summary.py",
    ),
    Mutant(
        "up: only the last epoch must balance",
        "compose/reports/summary.py",
        "for key, state in sorted(self.status.view.epochs.items())",
        "for key, state in sorted(self.status.view.epochs.items())[-1:]",
        "tests/compose/reports/test_summary.py",
    ),
    Mutant(
        "triggers: labels judge nothing where no teacher is asked",
        "streams/contract/window_metrics.py",
        "return labelled > 0 and labelled >= LABELLED * compared",
        "return False",
        "tests/federation/controller/test_triggers.py",
    ),
    Mutant(
        "canary: it waits for ever for devices that have ended",
        "federation/rollout/stage_policy.py",
        'if verdict.verdict != "wait" or not phases or not ended or waited_s < SETTLED_S:',
        "if True:",
        "tests/federation/rollout/test_stage_policy.py",
    ),
    Mutant(
        "spool: a recording does not wait for room",
        "edge_client/inference/loop.py",
        "while self.full() and not self.stop.is_set():",
        "while False:",
        "tests/edge_client/inference/test_loop.py",
    ),
    Mutant(
        "device: versions are compared on different segments",
        "edge_client/samples/accuracy.py",
        "both = places.keys() & first.keys()",
        "both = places.keys()",
        "tests/edge_client/samples",
    ),
    Mutant(
        "device: the account of a stopped agent cannot fail",
        "edge_client/agent.py",
        'self.spool.audit() if self._phase == "stopped" else self.spool.account()',
        "self.spool.account()",
        "tests/edge_client/test_agent.py",
    ),
    Mutant(
        "canary: a larger error is better",
        "federation/rollout/sequential_test.py",
        "lost = kind.sign * seen",
        "lost = seen",
        "tests/federation/rollout/test_metrics.py",
    ),
    Mutant(
        "canary: a rare class counts by its events",
        "federation/rollout/sequential_test.py",
        "w = pasts[0].balance if pasts and metric == BALANCED else",
        "w = pasts[0].balance if False else",
        "tests/federation/rollout/test_metrics.py",
    ),
    Mutant(
        "canary: reports in other units are added",
        "federation/rollout/window_history.py",
        "if report.metric != self._metric:",
        "if False:",
        "tests/federation/rollout/test_metrics.py",
    ),
    Mutant(
        "canary: one window shows how a device answers",
        "federation/rollout/compared.py",
        "USUAL = 7",
        "USUAL = 1",
        "tests/federation/rollout/test_stage_policy.py",
    ),
    Mutant(
        "canary: windows of few events are let go",
        "federation/rollout/window_history.py",
        "if both.min(initial=np.inf) > FULL:",
        "if True:",
        "tests/federation/rollout/test_stage_policy.py",
    ),
    Mutant(
        "view: a version is compared with one that was rolled back",
        "streams/fleet/truth.py",
        "if release in self.withdrawn:",
        "if False:",
        "tests/streams/fleet/test_truth.py",
    ),
    Mutant(
        "view: versions are compared in the order of their numbers",
        "streams/fleet/truth.py",
        "key=lambda each: (times.get(each, 0), model_number(each))",
        "key=model_number",
        "tests/streams/fleet/test_truth.py",
    ),
    Mutant(
        "view: a report that comes again counts",
        "streams/fleet/view.py",
        "if not self.reports.is_new(report):",
        "if False:",
        "tests/streams/fleet/test_view.py",
    ),
    Mutant(
        "view: the oldest snapshot counts",
        "streams/fleet/following.py",
        "for name in reversed(parts):",
        "for name in parts:",
        "tests/streams/fleet/test_following.py",
    ),
    Mutant(
        "view: what was deleted is not counted",
        "streams/fleet/following.py",
        'view.unseen["deleted"] += max(begin - known, 0)',
        'view.unseen["deleted"] += 0',
        "tests/streams/fleet/test_following.py",
    ),
    Mutant(
        "view: what was too much is not counted",
        "streams/fleet/following.py",
        'view.unseen["many"] += start - max(known, begin)',
        'view.unseen["many"] += 0',
        "tests/streams/fleet/test_following.py",
    ),
    Mutant(
        "view: a report that comes again counts again",
        "streams/fleet/agreement.py",
        "if number in names:",
        "if False:",
        "tests/streams/fleet",
    ),
    Mutant(
        "heartbeat: a change waits",
        "edge_client/uplink/pacing.py",
        "if (news, self._every_s) == (self._told, before_s) and now_s < self._beat_at:",
        "if now_s < self._beat_at:",
        "tests/edge_client/uplink/test_heartbeat.py",
    ),
    Mutant(
        "silence: a broker that was away makes devices silent",
        "federation/rounds/fleet_reports.py",
        "if now - self._heard_at > GAP_S:",
        "if now - self._heard_at > 1e9:",
        "tests/federation/rounds/test_fleet_reports.py",
    ),
    Mutant(
        "silence: a round ends without the updates that its strategy needs",
        "federation/rounds/collector.py",
        "return now if enough else cutoff",
        "return now",
        "tests/federation/rounds/test_collector.py",
    ),
    Mutant(
        "rounds: what a strategy makes NaN goes to the devices",
        "federation/rounds/aggregator.py",
        "if not np.isfinite(after).all():",
        "if False:",
        "tests/federation/rounds/test_aggregation.py",
    ),
    Mutant(
        "rounds: devices are given up when their work has ended, before the reply is there",
        "federation/rounds/collector.py",
        "return worked + max(LEAST_PATIENCE_S, (worked - sent.at) / PATIENCE)",
        "return worked",
        "tests/federation/rounds/test_collector.py",
    ),
    Mutant(
        "batch: an input changed in place, its time put back, is taken for the planned one",
        "streams/batch/sources/places.py",
        "{at.st_mtime_ns} {at.st_ctime_ns}",
        "{at.st_mtime_ns}",
        "tests/streams/batch/test_job.py",
    ),
    Mutant(
        "store: a collision is taken for a loss",
        "streams/worker/store/tables.py",
        "if FENCED.search(str(exc)):",
        "if True:",
        "tests/streams/worker/store/test_delta_store.py",
    ),
    Mutant(
        "reader: asks for other topics while messages wait to be taken",
        "streams/kafka/patches.py",
        "if self._completed_fetches or self._next_partition_records:",
        "if False:",
        "tests/streams/kafka/test_bus.py",
    ),
    Mutant(
        "worker: a fetch of labels keeps it from reading events",
        "streams/worker/patches.py",
        "if self._records:",
        "if False:",
        "tests/streams/worker/test_patches.py",
    ),
    Mutant(
        "worker: does not find brokers that have moved",
        "streams/worker/patches.py",
        "if not found:  # until",
        "if False:  # until",
        "tests/streams/worker/test_moved_brokers.py",
    ),
    Mutant(
        "worker: waits as long for a host that is down as for an answer",
        "streams/worker/patches.py",
        "min(CONNECT_MS, request_timeout_ms)",
        "request_timeout_ms",
        "tests/streams/worker/test_patches.py",
    ),
    Mutant(
        "reader and producer: do not find brokers that have moved",
        "streams/kafka/patches.py",
        "return random.choice(free) if free else None",
        "return None",
        "tests/streams/worker/test_moved_brokers.py",
    ),
    Mutant(
        "worker: is ready where no broker answers",
        "streams/worker/metrics.py",
        "return self._assigned and self._in_session()",
        "return self._assigned",
        "tests/streams/worker/test_secure_worker.py",
    ),
    Mutant(
        "election: a leader without a broker leads on",
        "streams/kafka/election.py",
        "and not expired",
        "",
        "tests/streams/kafka/test_election.py",
    ),
    Mutant(
        "worker: waits a second beside a full queue",
        "streams/worker/patches.py",
        "min(timeout_s, FULL_S)",
        "timeout_s",
        "tests/streams/worker/test_patches.py",
    ),
    Mutant(
        "batch: what was begun to be loaded is not noted",
        "streams/batch/jobs/job.py",
        "if not again:",
        "if False:",
        "tests/streams/batch/test_sinks.py",
    ),
    Mutant(
        "batch: a retry adds to the rows that it replaces",
        "streams/batch/output_tables.py",
        "if again:\n                query",
        "if False:\n                query",
        "tests/streams/batch/test_sinks.py",
    ),
    Mutant(
        "batch: an output file that is gone counts as there",
        "streams/batch/jobs/job_folder.py",
        "if not specification.in_files or record.bytes == size_of(part):",
        "if True:",
        "tests/streams/batch/test_job.py",
    ),
    Mutant(
        "invitation: a replayed one is followed",
        "streams/contract/invitations.py",
        "if last is not None and invitation.issued_us <= last[0]:",
        "if last is not None and invitation.issued_us < 0:",
        "tests/streams/contract/test_invitations.py",
    ),
    Mutant(
        "kafka: two threads compile a decoder together",
        "streams/kafka/patches.py",
        "    with _compiling:\n        return _decoder(",
        "    if True:\n        return _decoder(",
        "tests/streams/kafka/test_decoders.py",
    ),
    Mutant(
        "kafka: a connection that fails leaves its socket open",
        "streams/kafka/patches.py",
        "    except BaseException:\n        sock.close()",
        "    except BaseException:\n        pass",
        "tests/streams/kafka/test_sockets.py",
    ),
    Mutant(
        "kafka: a host that is down has all the time of a start",
        "streams/kafka/patches.py",
        "timeout_at = (timeout_at + time.monotonic()) / 2",
        "pass",
        "tests/streams/kafka/test_sockets.py",
    ),
    Mutant(
        "kafka: an address that has failed is tried before the others",
        "streams/kafka/patches.py",
        "strict=True) if n == min(failures)]",
        "strict=True)]",
        "tests/streams/kafka/test_sockets.py",
    ),
    Mutant(
        "download: events are let pass when nothing is missing any more",
        "streams/kafka/artifact_download.py",
        "if messages and download.missing:",
        "if messages:",
        "tests/streams/kafka/test_artifact_download.py",
    ),
    Mutant(
        "uplink: a thread that does not come back is waited for",
        "edge_client/uplink/uplink.py",
        "return self.is_alive() and self._clock() - self._back_at > HANG_S",
        "return False",
        "tests/edge_client/uplink/test_uplink.py",
    ),
    Mutant(
        "downlink: a version whose test never ends is waited for",
        "edge_client/downlink.py",
        "return self.is_alive() and self._clock() - self._back_at > limit_s",
        "return False",
        "tests/edge_client/test_rollback.py",
    ),
    Mutant(
        "memory: what is swapped out counts as unwritten",
        "streams/runtime/process.py",
        'words[0] in ("Anonymous:", "Swap:")',
        'words[0] in ("Anonymous:",)',
        "tests/streams/runtime/test_memory.py",
    ),
    *(
        Mutant(name, f"{file}.py", old, new, f"tests/{tests}.py")
        for name, file, old, new, tests in (
            (
                "lora: zeros change a weight",
                "streams/contract/weights/part",
                "out=part, where=product != 0)",
                "out=part)",
                "streams/contract/weights/test_part",
            ),
            (
                "lora: each version has the same directions",
                "streams/contract/weights/part",
                'f"{base} {name} {k}"',
                'f"{name} {k}"',
                "streams/contract/weights/test_part",
            ),
            (
                "lora: factors that nobody signed are multiplied",
                "streams/contract/weights/delta",
                "learned = check_file(entry, made)",
                "learned = made",
                "streams/contract/weights/test_delta",
            ),
            (
                "torchscript: an operator may name a file",
                "federation/bootstrap/onnx_export",
                "in UNKNOWN or graphs or named:",
                "in UNKNOWN or graphs:",
                "federation/bootstrap/test_torchscript",
            ),
            (
                "torchscript: code runs at reading",
                "federation/bootstrap/onnx_export",
                'RUNS = (b"__setstate__", b"torch.classes")',
                "RUNS = ()",
                "federation/bootstrap/test_torchscript",
            ),
        )
    ),
]
