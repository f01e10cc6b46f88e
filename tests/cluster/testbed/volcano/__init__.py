"""STAND-IN for Volcano's vc-controller-manager, vc-scheduler and vc-webhook-manager, which nobody serves as Go modules.

The types are Volcano's own (`binaries.volcano_crds`); what acts on them is written here from what a real Volcano
(commit ed72c7c8, Kubernetes 1.36.3) was seen to do, and tests compare it with what was recorded there. Three processes
as in the original: `python -m tests.cluster.testbed.volcano controller|scheduler|webhook`. They act only in namespaces
that carry LABEL.

Left out, because nothing here needs it: CronJob, JobFlow, volumes of a Job, dependsOn, forwarding, network topology,
preemption, reclaiming, queue hierarchies deeper than `root`, shares and weights of queues, the policy events PodPending
and JobUpdated, the action RestartPartition, and PodGroups of pods that belong to no Job of Volcano.
"""

LABEL = "pnas.test/volcano"
"""The label, with the value `true`, of the namespaces in which all of it acts."""
