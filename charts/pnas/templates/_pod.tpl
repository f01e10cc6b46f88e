{{- define "pnas.pod" -}}
{{- /* Written by `python -m docs.chart` from k8s/templates/_pod.yaml.j2. */ -}}
{{- /* The one pod template of every kind of job. Passes Pod Security `restricted`; needs no path of the host, because Ascend Docker Runtime brings driver and devices: `host_driver` is for clusters without. Values come in through tojson alone. */ -}}

metadata:
  labels: {{ toJson $.pod_labels }}
  annotations: {kubectl.kubernetes.io/default-container: trainer}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ toJson $.grace_period_s }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ toJson $.user }}
    runAsGroup: {{ toJson $.group }}
    fsGroup: {{ toJson $.group }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- if not (kindIs "invalid" $.priority_class) }}
  priorityClassName: {{ toJson $.priority_class }}
  {{- end }}
  {{- if $.node_selector }}
  nodeSelector: {{ toJson $.node_selector }}
  {{- end }}
  {{- if $.tolerations }}
  tolerations: {{ toJson $.tolerations }}
  {{- end }}
  {{- if not (kindIs "invalid" $.subdomain) }}
  # With it the service names each pod: NAME-0.NAME is where they meet.
  subdomain: {{ toJson $.subdomain }}
  {{- end }}
  {{- if gt (int $.nodes) 1 }}
  # A job of several nodes means different ones.
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector: {matchLabels: {pnas/job: {{ toJson $.name }}}}
  {{- end }}
  {{- if $.pull_secrets }}
  imagePullSecrets:
    {{- range $secret := $.pull_secrets }}
    - name: {{ toJson $secret }}
    {{- end }}
  {{- end }}
  containers:
    - name: trainer
      image: {{ toJson $.image }}
      imagePullPolicy: {{ toJson $.image_pull_policy }}
      # No command: that would pass the image's entry point by, which gives the trainer CANN's environment.
      args:
        - python
        - -m
        - trainer
        {{- range $word := $.args }}
        - {{ toJson $word }}
        {{- end }}
      # CANN writes kernel_meta to where it is, and its other caches and logs below $HOME.
      workingDir: /home/pnas
      env:
        - {name: HOME, value: /home/pnas}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        {{- if not (kindIs "invalid" $.visible_devices) }}
        # Ascend Docker Runtime brings in the NPUs that MindCluster's scheduler chose, and wrote on the pod.
        - {name: ASCEND_VISIBLE_DEVICES, valueFrom: {fieldRef: {fieldPath: {{ toJson $.visible_devices }}}}}
        {{- end }}
        {{- if gt (int $.nodes) 1 }}
        - {name: PNAS_NODE_RANK, valueFrom: {fieldRef: {fieldPath: {{ toJson $.index_annotation }}}}}
        {{- if not $.rank_table }}
        - {name: PNAS_MASTER_ADDR, value: {{ toJson $.master_address }}}
        {{- end }}
        {{- end }}
        {{- range $variable := $.env }}
        - {name: {{ toJson $variable.name }}, value: {{ toJson $variable.value }}}
        {{- end }}
      {{- if $.env_secrets }}
      envFrom:
        {{- range $secret := $.env_secrets }}
        - secretRef: {name: {{ toJson $secret }}}
        {{- end }}
      {{- end }}
      {{- if $.resources }}
      # Equal on purpose: the scheduler counts requests, and limits alone give no rank table.
      resources:
        requests: {{ toJson $.resources }}
        limits: {{ toJson $.resources }}
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        - {name: data, mountPath: /data, readOnly: true}
        - {name: output, mountPath: /output}
        - {name: shm, mountPath: /dev/shm}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/pnas}
        {{- if $.host_driver }}
        - {name: driver, mountPath: /usr/local/Ascend/driver, readOnly: true}
        {{- end }}
        {{- if $.rank_table }}
        - {name: rank-table, mountPath: /user/serverid/devindex/config, readOnly: true}
        {{- end }}
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: {{ toJson $.data_claim }}, readOnly: true}}
    - {name: output, persistentVolumeClaim: {claimName: {{ toJson $.output_claim }}}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ toJson $.shm }}}}
    - {name: tmp, emptyDir: {sizeLimit: {{ toJson $.scratch }}}}
    - {name: home, emptyDir: {sizeLimit: {{ toJson $.scratch }}}}
    {{- if $.host_driver }}
    - {name: driver, hostPath: {path: /usr/local/Ascend/driver, type: Directory}}
    {{- end }}
    {{- if $.rank_table }}
    - {name: rank-table, configMap: {name: {{ toJson $.rank_table }}}}
    {{- end }}
{{- end }}
