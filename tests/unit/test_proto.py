"""The messages are those of the contract, and the generated code is that of the .proto files."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

import shim
from shim._pb import ttrpc_pb2
from shim._pb.containerd.events import task_pb2 as event_pb2
from shim._pb.containerd.linux.runc import options_pb2 as linux_runc_pb2
from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from shim._pb.containerd.services.events.ttrpc.v1 import events_pb2
from shim._pb.containerd.task.v3 import task_pb2
from shim._pb.containerd.types import introspection_pb2, mount_pb2
from shim._pb.containerd.v1.containers import containers_pb2
from shim._pb.containerd.v1.services.execution import execution_pb2
from shim._pb.containerd.v1.services.shim import shim_pb2
from shim._pb.containerd.v1.snapshot import snapshot_pb2
from shim._pb.containerd.v1.types import descriptor_pb2, types_pb2
from shim._pb.containerd.v2.types import task_pb2 as status_pb2
from shim._pb.denseshim.host.v1 import host_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2
from shim._pb.io.containerd.cgroups.v1 import metrics_pb2 as v1_metrics_pb2
from shim._pb.io.containerd.cgroups.v2 import metrics_pb2 as v2_metrics_pb2
from shim._pb.runtimeoptions.v1 import options_pb2 as runtimeoptions_pb2

ROOT = Path(__file__).resolve().parents[2]
PB = Path(shim.__file__).parent / "_pb"

SHIM = "containerd.v1.services.shim"
TYPES = "containerd.v1.types"
CONTAINERS, EXECUTION = "containerd.v1", "containerd.v1.services.execution"
SNAPSHOT = "containerd.v1.snapshot"
TASK, HOST = "containerd.task.v3", "denseshim.host.v1"
MACHINE = "denseshim.machine.v1"
EMPTY = "google.protobuf.Empty"

TIME = "google.protobuf.Timestamp"
BOOTSTRAP = "containerd.runtime.bootstrap.v1"
V1, V2 = "io.containerd.cgroups.v1", "io.containerd.cgroups.v2"

# What several messages begin with.
ONE_CONTAINER = f"container=1 {CONTAINERS}.Container"
OF_CONTAINER = "container_id=1 string"
PROCESS = "id=1 string, exec_id=2 string"
CHECKPOINT = (
    "exit=1 bool, open_tcp=2 bool, external_unix_sockets=3 bool, terminal=4 bool, "
    "file_locks=5 bool, empty_namespaces=6 *string, cgroups_mode=7 string"
)
COUNTED = (
    "cache rss rss_huge mapped_file dirty writeback pg_pg_in pg_pg_out pg_fault pg_maj_fault "
    "inactive_anon active_anon inactive_file active_file unevictable"
)


def numbered(names: str, first: int = 1, kind: str = "uint64") -> str:
    """Fields of one type with consecutive numbers."""
    return ", ".join(f"{name}={number} {kind}" for number, name in enumerate(names.split(), first))


# Contract: Messages. As NAME=NUMBER TYPE; a * stands for repeated (and maps). By file and message.
FIELDS: dict[ModuleType, dict[str, str]] = {
    types_pb2: {
        "Mount": "type=1 string, source=2 string, target=3 string, options=4 *string",
        "Process": "pid=1 uint32, args=2 *string, env=3 *string, user=4 containerd.v1.types.User, "
        "cwd=5 string, terminal=6 bool, exit_status=7 uint32, status=8 containerd.v1.types.Status, "
        "runtime_data=9 google.protobuf.Any",
        "User": "uid=1 uint32, gid=2 uint32, additional_gids=3 *uint32",
        "Task": "id=1 string, container_id=2 string, pid=3 uint32, "
        "status=4 containerd.v1.types.Status, spec=5 google.protobuf.Any",
        "Event": "id=1 string, type=2 containerd.v1.types.Event.EventType, pid=3 uint32, "
        "exit_status=4 uint32, exited_at=5 google.protobuf.Timestamp",
    },
    shim_pb2: {
        "CreateRequest": "id=1 string, bundle=2 string, runtime=3 string, no_pivot=4 bool, "
        "terminal=5 bool, stdin=6 string, stdout=7 string, stderr=8 string, "
        "rootfs=9 *containerd.v1.types.Mount, checkpoint=10 string, parent_checkpoint=11 string",
        "CreateResponse": "pid=1 uint32",
        "StartRequest": "",
        "DeleteRequest": "pid=1 uint32",
        "DeleteResponse": "exit_status=1 uint32, exited_at=2 google.protobuf.Timestamp",
        "StateRequest": "",
        "StateResponse": "id=1 string, bundle=2 string, pid=3 uint32, "
        "status=4 containerd.v1.types.Status, processes=5 *containerd.v1.types.Process",
        "ProcessesRequest": "id=1 string",
        "ProcessesResponse": "processes=1 *containerd.v1.types.Process",
        "PauseRequest": "",
        "ResumeRequest": "",
        "CheckpointRequest": "exit=1 bool, allow_tcp=2 bool, allow_unix_sockets=3 bool, "
        "allow_terminal=4 bool, file_locks=5 bool, empty_namespaces=6 *string, image=7 string",
        "ExitRequest": "",
        "EventsRequest": "",
        "KillRequest": "signal=1 uint32, all=2 bool, pid=3 uint32",
        "ExecRequest": "terminal=1 bool, stdin=2 string, stdout=3 string, stderr=4 string, "
        "spec=5 google.protobuf.Any",
        "ExecResponse": "pid=1 uint32",
        "PtyRequest": "pid=1 uint32, width=2 uint32, height=3 uint32",
        "CloseStdinRequest": "pid=1 uint32",
        "Rlimit": "type=1 string, hard=2 uint64, soft=3 uint64",
    },
    descriptor_pb2: {
        "Descriptor": "media_type=1 string, digest=2 string, size=3 int64",
    },
    containers_pb2: {
        "Container": "id=1 string, labels=2 *containerd.v1.Container.LabelsEntry, "
        "image=3 string, runtime=4 string, spec=6 google.protobuf.Any, rootfs=7 string",
        "GetContainerRequest": "id=1 string",
        "GetContainerResponse": ONE_CONTAINER,
        "ListContainersRequest": "filter=1 string",
        "ListContainersResponse": f"containers=1 *{CONTAINERS}.Container",
        "CreateContainerRequest": ONE_CONTAINER,
        "CreateContainerResponse": ONE_CONTAINER,
        "UpdateContainerRequest": f"{ONE_CONTAINER}, update_mask=2 google.protobuf.FieldMask",
        "UpdateContainerResponse": ONE_CONTAINER,
        "DeleteContainerRequest": "id=1 string",
    },
    execution_pb2: {
        "CreateRequest": f"container_id=2 string, rootfs=3 *{TYPES}.Mount, stdin=5 string, "
        "stdout=6 string, stderr=7 string, terminal=8 bool, "
        f"checkpoint=9 {TYPES}.Descriptor",
        "CreateResponse": "container_id=2 string, pid=3 uint32",
        "StartRequest": OF_CONTAINER,
        "DeleteRequest": OF_CONTAINER,
        "DeleteResponse": f"{OF_CONTAINER}, exit_status=2 uint32, exited_at=3 {TIME}",
        "InfoRequest": OF_CONTAINER,
        "InfoResponse": f"task=1 {TYPES}.Task",
        "ListRequest": "",
        "ListResponse": f"tasks=1 *{TYPES}.Task",
        "KillRequest": f"{OF_CONTAINER}, signal=2 uint32, all=3 bool, pid=4 uint32",
        "EventsRequest": "",
        "ExecRequest": f"{OF_CONTAINER}, terminal=2 bool, stdin=3 string, stdout=4 string, "
        "stderr=5 string, spec=6 google.protobuf.Any",
        "ExecResponse": "pid=1 uint32",
        "PtyRequest": f"{OF_CONTAINER}, pid=2 uint32, width=3 uint32, height=4 uint32",
        "CloseStdinRequest": f"{OF_CONTAINER}, pid=2 uint32",
        "PauseRequest": OF_CONTAINER,
        "ResumeRequest": OF_CONTAINER,
        "ProcessesRequest": OF_CONTAINER,
        "ProcessesResponse": f"processes=1 *{TYPES}.Process",
        "CheckpointRequest": f"{OF_CONTAINER}, allow_tcp=2 bool, allow_unix_sockets=3 bool, "
        "allow_terminal=4 bool, file_locks=5 bool, empty_namespaces=6 *string, "
        "parent_checkpoint=7 string, exit=8 bool",
        "CheckpointResponse": f"descriptors=1 *{TYPES}.Descriptor",
    },
    snapshot_pb2: {
        "PrepareRequest": "key=1 string, parent=2 string",
        "MountsRequest": "key=1 string",
        "MountsResponse": f"mounts=1 *{TYPES}.Mount",
        "CommitRequest": "name=1 string, key=2 string",
        "RemoveRequest": "key=1 string",
        "StatRequest": "key=1 string",
        "StatResponse": f"info=1 {SNAPSHOT}.Info",
        "ListRequest": "",
        "ListResponse": f"info=1 *{SNAPSHOT}.Info",
        "UsageRequest": "key=1 string",
        "UsageResponse": "size=1 int64, inodes=2 int64",
        "Info": f"name=1 string, parent=2 string, kind=3 {SNAPSHOT}.Kind, readonly=4 bool",
    },
    machine_pb2: {
        "ImportRequest": "name=1 string, path=2 string, platform=3 string, reference=4 string, "
        "no_devices=5 bool",
        "ImportResponse": f"done=1 uint64, total=2 uint64, what=3 string, "
        f"imported=4 {MACHINE}.ImageResponse",
        "ImageRequest": "name=1 string",
        "ImageResponse": "name=1 string, config=2 bytes, lost=3 uint32",
        "InspectRequest": OF_CONTAINER,
        "InspectResponse": "pid=1 uint32, terminal=2 bool, stdin=3 string, stdout=4 string, "
        f"stderr=5 string, exit_status=6 uint32, exited_at=7 {TIME}, created_at=8 {TIME}, "
        f"updated_at=9 {TIME}, bundle=10 string, processes=11 *{TYPES}.Process, "
        "output_open=12 bool",
        "UsageRequest": "",
        "UsageResponse": f"tasks=1 *{MACHINE}.TaskUsage",
        "TaskUsage": f"{OF_CONTAINER}, "
        + numbered("cpu memory memory_limit pids output", 2),
        "CheckRequest": "",
        "CheckResponse": "problems=1 *string",
    },
    ttrpc_pb2: {
        "Request": "service=1 string, method=2 string, payload=3 bytes, timeout_nano=4 int64, "
        "metadata=5 *ttrpc.KeyValue",
        "Response": "status=1 ttrpc.Status, payload=2 bytes",
        "KeyValue": "key=1 string, value=2 string",
        "Status": "code=1 int32, message=2 string, details=3 *google.protobuf.Any",
    },
    mount_pb2: {
        "Mount": "type=1 string, source=2 string, target=3 string, options=4 *string",
    },
    introspection_pb2: {
        "RuntimeInfo": "name=1 string, version=2 containerd.types.RuntimeVersion, "
        "options=3 google.protobuf.Any, features=4 google.protobuf.Any, "
        "annotations=5 *containerd.types.RuntimeInfo.AnnotationsEntry",
        "RuntimeVersion": "version=1 string, revision=2 string",
    },
    status_pb2: {
        "ProcessInfo": "pid=1 uint32, info=2 google.protobuf.Any",
    },
    task_pb2: {
        "CreateTaskRequest": "id=1 string, bundle=2 string, rootfs=3 *containerd.types.Mount, "
        "terminal=4 bool, stdin=5 string, stdout=6 string, stderr=7 string, checkpoint=8 string, "
        "parent_checkpoint=9 string, options=10 google.protobuf.Any",
        "CreateTaskResponse": "pid=1 uint32",
        "StartRequest": PROCESS,
        "StartResponse": "pid=1 uint32",
        "DeleteRequest": PROCESS,
        "DeleteResponse": f"pid=1 uint32, exit_status=2 uint32, exited_at=3 {TIME}",
        "ExecProcessRequest": f"{PROCESS}, terminal=3 bool, stdin=4 string, stdout=5 string, "
        "stderr=6 string, spec=7 google.protobuf.Any",
        "ResizePtyRequest": f"{PROCESS}, width=3 uint32, height=4 uint32",
        "StateRequest": PROCESS,
        "StateResponse": "id=1 string, bundle=2 string, pid=3 uint32, "
        "status=4 containerd.v2.types.Status, stdin=5 string, stdout=6 string, stderr=7 string, "
        f"terminal=8 bool, exit_status=9 uint32, exited_at=10 {TIME}, exec_id=11 string",
        "PidsRequest": "id=1 string",
        "PidsResponse": "processes=1 *containerd.v2.types.ProcessInfo",
        "KillRequest": f"{PROCESS}, signal=3 uint32, all=4 bool",
        "CloseIORequest": f"{PROCESS}, stdin=3 bool",
        "PauseRequest": "id=1 string",
        "ResumeRequest": "id=1 string",
        "CheckpointTaskRequest": "id=1 string, path=2 string, options=3 google.protobuf.Any",
        "UpdateTaskRequest": "id=1 string, resources=2 google.protobuf.Any, "
        "annotations=3 *containerd.task.v3.UpdateTaskRequest.AnnotationsEntry",
        "WaitRequest": PROCESS,
        "WaitResponse": f"exit_status=1 uint32, exited_at=2 {TIME}",
        "StatsRequest": "id=1 string",
        "StatsResponse": "stats=1 google.protobuf.Any",
        "ConnectRequest": "id=1 string",
        "ConnectResponse": "shim_pid=1 uint32, task_pid=2 uint32, version=3 string",
        "ShutdownRequest": "id=1 string, now=2 bool",
    },
    event_pb2: {
        "TaskCreate": "container_id=1 string, bundle=2 string, rootfs=3 *containerd.types.Mount, "
        "io=4 containerd.events.TaskIO, checkpoint=5 string, pid=6 uint32",
        "TaskIO": "stdin=1 string, stdout=2 string, stderr=3 string, terminal=4 bool",
        "TaskStart": "container_id=1 string, pid=2 uint32",
        "TaskDelete": "container_id=1 string, pid=2 uint32, exit_status=3 uint32, "
        f"exited_at=4 {TIME}, id=5 string",
        "TaskExit": "container_id=1 string, id=2 string, pid=3 uint32, exit_status=4 uint32, "
        f"exited_at=5 {TIME}",
        "TaskOOM": "container_id=1 string",
        "TaskExecAdded": "container_id=1 string, exec_id=2 string",
        "TaskExecStarted": "container_id=1 string, exec_id=2 string, pid=3 uint32",
        "TaskPaused": "container_id=1 string",
        "TaskResumed": "container_id=1 string",
        "TaskCheckpointed": "container_id=1 string, checkpoint=2 string",
    },
    events_pb2: {
        "ForwardRequest": "envelope=1 containerd.services.events.ttrpc.v1.Envelope",
        "Envelope": f"timestamp=1 {TIME}, namespace=2 string, topic=3 string, "
        "event=4 google.protobuf.Any",
    },
    runc_pb2: {
        "Options": "no_pivot_root=1 bool, no_new_keyring=2 bool, shim_cgroup=3 string, "
        "io_uid=4 uint32, io_gid=5 uint32, binary_name=6 string, root=7 string, "
        "criu_path=8 string, systemd_cgroup=9 bool, criu_image_path=10 string, "
        "criu_work_path=11 string, task_api_address=12 string, task_api_version=13 uint32",
        "CheckpointOptions": f"{CHECKPOINT}, image_path=8 string, work_path=9 string",
        "ProcessDetails": "exec_id=1 string",
    },
    linux_runc_pb2: {
        "CreateOptions": "no_pivot_root=1 bool, open_tcp=2 bool, external_unix_sockets=3 bool, "
        "terminal=4 bool, file_locks=5 bool, empty_namespaces=6 *string, cgroups_mode=7 string, "
        "no_new_keyring=8 bool, shim_cgroup=9 string, io_uid=10 uint32, io_gid=11 uint32, "
        "criu_work_path=12 string, criu_image_path=13 string",
        "CheckpointOptions": f"{CHECKPOINT}, work_path=8 string, image_path=9 string",
    },
    runtimeoptions_pb2: {
        "Options": "type_url=1 string, config_path=2 string, config_body=3 bytes",
    },
    bootstrap_pb2: {
        "Extension": "value=1 google.protobuf.Any",
        "BootstrapParams": "instance_id=1 string, namespace=2 string, "
        f"log_level=3 {BOOTSTRAP}.LogLevel, containerd_version=4 string, "
        "containerd_ttrpc_address=5 string, containerd_grpc_address=6 string, "
        f"containerd_binary=7 string, extensions=8 *{BOOTSTRAP}.Extension, socket_dir=9 string",
        "BootstrapResult": "version=1 int32, address=2 string, protocol=3 string, "
        f"capabilities=4 *{BOOTSTRAP}.Capability, "
        f"metadata=5 *{BOOTSTRAP}.BootstrapResult.MetadataEntry",
    },
    v1_metrics_pb2: {
        "Metrics": f"hugetlb=1 *{V1}.HugetlbStat, pids=2 {V1}.PidsStat, cpu=3 {V1}.CPUStat, "
        f"memory=4 {V1}.MemoryStat, blkio=5 {V1}.BlkIOStat, rdma=6 {V1}.RdmaStat, "
        f"memory_oom_control=9 {V1}.MemoryOomControl",
        "HugetlbStat": "usage=1 uint64, max=2 uint64, failcnt=3 uint64, pagesize=4 string",
        "PidsStat": "current=1 uint64, limit=2 uint64",
        "CPUStat": f"usage=1 {V1}.CPUUsage, throttling=2 {V1}.Throttle",
        "CPUUsage": "total=1 uint64, kernel=2 uint64, user=3 uint64, per_cpu=4 *uint64",
        "Throttle": "periods=1 uint64, throttled_periods=2 uint64, throttled_time=3 uint64",
        "MemoryStat": numbered(f"{COUNTED} hierarchical_memory_limit hierarchical_swap_limit")
        + ", "
        + numbered(" ".join(f"total_{name}" for name in COUNTED.split()), 18)
        + f", usage=33 {V1}.MemoryEntry, swap=34 {V1}.MemoryEntry, "
        f"kernel=35 {V1}.MemoryEntry, kernel_tcp=36 {V1}.MemoryEntry",
        "MemoryEntry": numbered("limit usage max failcnt"),
        "MemoryOomControl": numbered("oom_kill_disable under_oom oom_kill"),
        "BlkIOStat": numbered(
            "io_service_bytes_recursive io_serviced_recursive io_queued_recursive "
            "io_service_time_recursive io_wait_time_recursive io_merged_recursive "
            "io_time_recursive sectors_recursive",
            kind=f"*{V1}.BlkIOEntry",
        ),
        "BlkIOEntry": "op=1 string, device=2 string, " + numbered("major minor value", 3),
        "RdmaStat": f"current=1 *{V1}.RdmaEntry, limit=2 *{V1}.RdmaEntry",
        "RdmaEntry": "device=1 string, hca_handles=2 uint32, hca_objects=3 uint32",
    },
    v2_metrics_pb2: {
        "Metrics": f"pids=1 {V2}.PidsStat, cpu=2 {V2}.CPUStat, memory=4 {V2}.MemoryStat, "
        f"rdma=5 {V2}.RdmaStat, io=6 {V2}.IOStat, hugetlb=7 *{V2}.HugeTlbStat, "
        f"memory_events=8 {V2}.MemoryEvents",
        "PSIStats": f"some=1 {V2}.PSIData, full=2 {V2}.PSIData",
        "PSIData": "avg10=1 double, avg60=2 double, avg300=3 double, total=4 uint64",
        "PidsStat": "current=1 uint64, limit=2 uint64",
        "CPUStat": numbered(
            "usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec"
        )
        + f", psi=7 {V2}.PSIStats",
        "MemoryStat": numbered(
            "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp "
            "inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable "
            "slab_unreclaimable pgfault pgmajfault workingset_refault workingset_activate "
            "workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree "
            "pglazyfreed thp_fault_alloc thp_collapse_alloc usage usage_limit swap_usage "
            "swap_limit max_usage swap_max_usage"
        )
        + f", psi=38 {V2}.PSIStats",
        "MemoryEvents": numbered("low high max oom oom_kill"),
        "RdmaStat": f"current=1 *{V2}.RdmaEntry, limit=2 *{V2}.RdmaEntry",
        "RdmaEntry": "device=1 string, hca_handles=2 uint32, hca_objects=3 uint32",
        "IOStat": f"usage=1 *{V2}.IOEntry, psi=2 {V2}.PSIStats",
        "IOEntry": numbered("major minor rbytes wbytes rios wios"),
        "HugeTlbStat": "current=1 uint64, max=2 uint64, pagesize=3 string",
    },
    host_pb2: {
        "Limit": "resource=1 uint32, soft=2 uint64, hard=3 uint64",
        "LaunchRequest": "argv=1 *bytes, env=2 *bytes, cwd=3 bytes, stdin=4 bytes, umask=5 uint32, "
        "limits=6 *denseshim.host.v1.Limit, cgroup=7 bytes, oom_score_adj=8 sint32",
        "LaunchResponse": "status=1 uint32, stdout=2 bytes, stderr=3 bytes, apart=4 bool",
        "StopRequest": "force=1 bool",
        "StopResponse": "",
        "StatusRequest": "",
        "StatusResponse": "version=1 string, keeper_pid=2 uint32, front_pid=3 uint32, "
        "containers=4 uint32",
        "UpgradeRequest": "python=1 bytes",
        "UpgradeResponse": "version=1 string",
        "ApiRequest": "",
        "ApiResponse": "socket=1 string",
    },
}

STATUS = {"UNKNOWN": 0, "CREATED": 1, "RUNNING": 2, "STOPPED": 3, "PAUSED": 4}
ENUMERATIONS = [
    (types_pb2.DESCRIPTOR.enum_types_by_name["Status"], STATUS),
    (status_pb2.DESCRIPTOR.enum_types_by_name["Status"], {**STATUS, "PAUSING": 5}),
    (
        types_pb2.Event.DESCRIPTOR.enum_types_by_name["EventType"],
        {"EXIT": 0, "OOM": 1, "CREATE": 2, "START": 3, "EXEC_ADDED": 4, "PAUSED": 5},
    ),
    (snapshot_pb2.DESCRIPTOR.enum_types_by_name["Kind"], {"ACTIVE": 0, "COMMITTED": 1}),
    (
        bootstrap_pb2.DESCRIPTOR.enum_types_by_name["LogLevel"],
        {"INFO": 0, "TRACE": -8, "DEBUG": -4, "WARN": 4, "ERROR": 8, "FATAL": 10, "PANIC": 12},
    ),
]

METHODS = {
    f"{SHIM}.Shim": {
        "Create": ("CreateRequest", f"{SHIM}.CreateResponse"),
        "Start": ("StartRequest", EMPTY),
        "Delete": ("DeleteRequest", f"{SHIM}.DeleteResponse"),
        "State": ("StateRequest", f"{SHIM}.StateResponse"),
        "Processes": ("ProcessesRequest", f"{SHIM}.ProcessesResponse"),
        "Pause": ("PauseRequest", EMPTY),
        "Resume": ("ResumeRequest", EMPTY),
        "Checkpoint": ("CheckpointRequest", EMPTY),
        "Exit": ("ExitRequest", EMPTY),
        "Events": ("EventsRequest", f"stream {TYPES}.Event"),
        "Kill": ("KillRequest", EMPTY),
        "Exec": ("ExecRequest", f"{SHIM}.ExecResponse"),
        "Pty": ("PtyRequest", EMPTY),
        "CloseStdin": ("CloseStdinRequest", EMPTY),
    },
    f"{TASK}.Task": {
        "State": ("StateRequest", f"{TASK}.StateResponse"),
        "Create": ("CreateTaskRequest", f"{TASK}.CreateTaskResponse"),
        "Start": ("StartRequest", f"{TASK}.StartResponse"),
        "Delete": ("DeleteRequest", f"{TASK}.DeleteResponse"),
        "Pids": ("PidsRequest", f"{TASK}.PidsResponse"),
        "Pause": ("PauseRequest", EMPTY),
        "Resume": ("ResumeRequest", EMPTY),
        "Checkpoint": ("CheckpointTaskRequest", EMPTY),
        "Kill": ("KillRequest", EMPTY),
        "Exec": ("ExecProcessRequest", EMPTY),
        "ResizePty": ("ResizePtyRequest", EMPTY),
        "CloseIO": ("CloseIORequest", EMPTY),
        "Update": ("UpdateTaskRequest", EMPTY),
        "Wait": ("WaitRequest", f"{TASK}.WaitResponse"),
        "Stats": ("StatsRequest", f"{TASK}.StatsResponse"),
        "Connect": ("ConnectRequest", f"{TASK}.ConnectResponse"),
        "Shutdown": ("ShutdownRequest", EMPTY),
    },
    "containerd.services.events.ttrpc.v1.Events": {
        "Forward": ("ForwardRequest", EMPTY),
    },
    f"{HOST}.Host": {
        "Launch": ("LaunchRequest", f"{HOST}.LaunchResponse"),
        "Stop": ("StopRequest", f"{HOST}.StopResponse"),
        "Status": ("StatusRequest", f"{HOST}.StatusResponse"),
        "Upgrade": ("UpgradeRequest", f"{HOST}.UpgradeResponse"),
        "Api": ("ApiRequest", f"{HOST}.ApiResponse"),
    },
    f"{CONTAINERS}.Containers": {
        "Get": ("GetContainerRequest", f"{CONTAINERS}.GetContainerResponse"),
        "List": ("ListContainersRequest", f"{CONTAINERS}.ListContainersResponse"),
        "Create": ("CreateContainerRequest", f"{CONTAINERS}.CreateContainerResponse"),
        "Update": ("UpdateContainerRequest", f"{CONTAINERS}.UpdateContainerResponse"),
        "Delete": ("DeleteContainerRequest", EMPTY),
    },
    f"{EXECUTION}.Tasks": {
        "Create": ("CreateRequest", f"{EXECUTION}.CreateResponse"),
        "Start": ("StartRequest", EMPTY),
        "Delete": ("DeleteRequest", f"{EXECUTION}.DeleteResponse"),
        "Info": ("InfoRequest", f"{EXECUTION}.InfoResponse"),
        "List": ("ListRequest", f"{EXECUTION}.ListResponse"),
        "Kill": ("KillRequest", EMPTY),
        "Events": ("EventsRequest", f"stream {TYPES}.Event"),
        "Exec": ("ExecRequest", f"{EXECUTION}.ExecResponse"),
        "Pty": ("PtyRequest", EMPTY),
        "CloseStdin": ("CloseStdinRequest", EMPTY),
        "Pause": ("PauseRequest", EMPTY),
        "Resume": ("ResumeRequest", EMPTY),
        "Processes": ("ProcessesRequest", f"{EXECUTION}.ProcessesResponse"),
        "Checkpoint": ("CheckpointRequest", f"{EXECUTION}.CheckpointResponse"),
    },
    f"{SNAPSHOT}.Snapshot": {
        "Prepare": ("PrepareRequest", f"{SNAPSHOT}.MountsResponse"),
        "View": ("PrepareRequest", f"{SNAPSHOT}.MountsResponse"),
        "Mounts": ("MountsRequest", f"{SNAPSHOT}.MountsResponse"),
        "Commit": ("CommitRequest", EMPTY),
        "Remove": ("RemoveRequest", EMPTY),
        "Stat": ("StatRequest", f"{SNAPSHOT}.StatResponse"),
        "List": ("ListRequest", f"stream {SNAPSHOT}.ListResponse"),
        "Usage": ("UsageRequest", f"{SNAPSHOT}.UsageResponse"),
    },
    f"{MACHINE}.Machine": {
        "Import": ("ImportRequest", f"stream {MACHINE}.ImportResponse"),
        "Image": ("ImageRequest", f"{MACHINE}.ImageResponse"),
        "Inspect": ("InspectRequest", f"{MACHINE}.InspectResponse"),
        "Usage": ("UsageRequest", f"{MACHINE}.UsageResponse"),
        "Check": ("CheckRequest", f"{MACHINE}.CheckResponse"),
    },
}

KINDS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def described(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    kind = named.full_name if named else KINDS[field.type]
    return f"{field.name}={field.number} {'*' if field.is_repeated else ''}{kind}"


def fields(message: Descriptor) -> str:
    return ", ".join(map(described, sorted(message.fields, key=lambda field: field.number)))


def test_every_file_is_looked_at() -> None:
    sources = {str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")}
    assert sources == {module.DESCRIPTOR.name for module in FIELDS}


@pytest.mark.parametrize("module", FIELDS, ids=lambda module: module.DESCRIPTOR.name)
def test_a_file_has_these_messages_and_no_others(module: ModuleType) -> None:
    found = module.DESCRIPTOR.message_types_by_name
    assert {name: fields(message) for name, message in found.items()} == FIELDS[module]


@pytest.mark.parametrize(("enumeration", "wanted"), ENUMERATIONS)
def test_an_enumeration(enumeration: EnumDescriptor, wanted: dict[str, int]) -> None:
    assert {value.name: value.number for value in enumeration.values} == wanted


def test_the_services() -> None:
    services = [
        service for module in FIELDS for service in module.DESCRIPTOR.services_by_name.values()
    ]
    found = {
        service.full_name: {
            method.name: (
                method.input_type.name,
                ("stream " if method.server_streaming else "") + method.output_type.full_name,
            )
            for method in service.methods
        }
        for service in services
    }
    assert found == METHODS
    assert not any(method.client_streaming for service in services for method in service.methods)


def test_only_what_is_called_over_grpc_has_code_for_it() -> None:
    names = ("containers", "execution", "machine", "shim", "snapshot")
    found = sorted(path.name for path in PB.rglob("*_grpc.py"))
    assert found == [f"{name}_pb2_grpc.py" for name in names]


@pytest.mark.parametrize("name", ["google.rpc.Status", "containerd.v1.types.ProcessInfo"])
def test_names_of_other_distributions_are_left_to_them(name: str) -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(name)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    rows = {str(path.relative_to(folder)): path.read_bytes() for path in found}
    return {name: data for name, data in rows.items() if "__pycache__" not in name}


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    generate = runpy.run_path(str(ROOT / "scripts" / "make_proto.py"))["generate"]
    generate(tmp_path / "_pb")
    assert files(tmp_path / "_pb") == files(PB)
