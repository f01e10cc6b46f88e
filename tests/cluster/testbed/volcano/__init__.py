"""STAND-IN for Volcano's vc-controller-manager, vc-scheduler and vc-webhook-manager, which no Go module proxy serves.

The types are Volcano's own (`binaries.volcano_crds`). The programs here follow the recorded behaviour of a real Volcano
(commit ed72c7c8, Kubernetes 1.36.3), and tests compare them with the recordings. As in the original there are three
processes: `python -m tests.cluster.testbed.volcano controller|scheduler|webhook`. They act only in namespaces that
carry LABEL.

Left out, because no test needs it: CronJob, JobFlow, volumes of a Job, dependsOn, forwarding, network topology,
preemption, reclaiming, queue hierarchies deeper than `root`, shares and weights of queues, the policy events PodPending
and JobUpdated, the action RestartPartition, and PodGroups of pods outside Volcano Jobs.
"""

LABEL = "pnas.test/volcano"
"""The label, with the value `true`, of the namespaces in which the stand-in acts."""
