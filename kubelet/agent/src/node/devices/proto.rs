//! The messages of device plugins (`v1beta1`) and of the pod resources API (`v1`): names and numbers are upstream's.

use std::collections::HashMap;

/// Declares messages with their fields, each documented by its name upstream.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, prost::Message)]
            pub struct $name {
                $($(#[$field])* pub $member: $kind,)*
            }
        )*
    };
}

messages! {
    /// Nothing.
    Empty {}

    /// What a plugin wants to be asked.
    DevicePluginOptions {
        /// `pre_start_required`
        #[prost(bool, tag = "1")]
        pre_start_required: bool,
        /// `get_preferred_allocation_available`
        #[prost(bool, tag = "2")]
        get_preferred_allocation_available: bool,
    }

    /// A plugin introduces itself.
    RegisterRequest {
        /// `version`
        #[prost(string, tag = "1")]
        version: String,
        /// `endpoint`: its socket's name beside the kubelet's.
        #[prost(string, tag = "2")]
        endpoint: String,
        /// `resource_name`
        #[prost(string, tag = "3")]
        resource_name: String,
        /// `options`
        #[prost(message, optional, tag = "4")]
        options: Option<DevicePluginOptions>,
    }

    /// All devices of a plugin.
    ListAndWatchResponse {
        /// `devices`
        #[prost(message, repeated, tag = "1")]
        devices: Vec<Device>,
    }

    /// NUMA nodes.
    TopologyInfo {
        /// `nodes`
        #[prost(message, repeated, tag = "1")]
        nodes: Vec<NumaNode>,
    }

    /// A NUMA node.
    NumaNode {
        /// `ID`
        #[prost(int64, tag = "1")]
        id: i64,
    }

    /// A device.
    Device {
        /// `ID`
        #[prost(string, tag = "1")]
        id: String,
        /// `health`: `Healthy` or not.
        #[prost(string, tag = "2")]
        health: String,
        /// `topology`
        #[prost(message, optional, tag = "3")]
        topology: Option<TopologyInfo>,
    }

    /// Devices of a container that is about to start.
    PreStartContainerRequest {
        /// `devices_ids`
        #[prost(string, repeated, tag = "1")]
        devices_ids: Vec<String>,
    }

    /// Nothing.
    PreStartContainerResponse {}

    /// Which devices would be best.
    PreferredAllocationRequest {
        /// `container_requests`
        #[prost(message, repeated, tag = "1")]
        container_requests: Vec<ContainerPreferredAllocationRequest>,
    }

    /// Which devices would be best for one container.
    ContainerPreferredAllocationRequest {
        /// `available_deviceIDs`
        #[prost(string, repeated, tag = "1")]
        available_device_ids: Vec<String>,
        /// `must_include_deviceIDs`
        #[prost(string, repeated, tag = "2")]
        must_include_device_ids: Vec<String>,
        /// `allocation_size`
        #[prost(int32, tag = "3")]
        allocation_size: i32,
    }

    /// These would be.
    PreferredAllocationResponse {
        /// `container_responses`
        #[prost(message, repeated, tag = "1")]
        container_responses: Vec<ContainerPreferredAllocationResponse>,
    }

    /// These would be, for one container.
    ContainerPreferredAllocationResponse {
        /// `deviceIDs`
        #[prost(string, repeated, tag = "1")]
        device_ids: Vec<String>,
    }

    /// Containers are about to get devices.
    AllocateRequest {
        /// `container_requests`
        #[prost(message, repeated, tag = "1")]
        container_requests: Vec<ContainerAllocateRequest>,
    }

    /// A container's devices.
    ContainerAllocateRequest {
        /// `devices_ids`
        #[prost(string, repeated, tag = "1")]
        devices_ids: Vec<String>,
    }

    /// What containers need for their devices.
    AllocateResponse {
        /// `container_responses`
        #[prost(message, repeated, tag = "1")]
        container_responses: Vec<ContainerAllocateResponse>,
    }

    /// What a container needs for its devices.
    ContainerAllocateResponse {
        /// `envs`
        #[prost(map = "string, string", tag = "1")]
        envs: HashMap<String, String>,
        /// `mounts`
        #[prost(message, repeated, tag = "2")]
        mounts: Vec<Mount>,
        /// `devices`
        #[prost(message, repeated, tag = "3")]
        devices: Vec<DeviceSpec>,
        /// `annotations`
        #[prost(map = "string, string", tag = "4")]
        annotations: HashMap<String, String>,
        /// `cdi_devices`
        #[prost(message, repeated, tag = "5")]
        cdi_devices: Vec<CdiDevice>,
    }

    /// A CDI device.
    CdiDevice {
        /// `name`: fully qualified.
        #[prost(string, tag = "1")]
        name: String,
    }

    /// A mount.
    Mount {
        /// `container_path`
        #[prost(string, tag = "1")]
        container_path: String,
        /// `host_path`
        #[prost(string, tag = "2")]
        host_path: String,
        /// `read_only`
        #[prost(bool, tag = "3")]
        read_only: bool,
    }

    /// A device file.
    DeviceSpec {
        /// `container_path`
        #[prost(string, tag = "1")]
        container_path: String,
        /// `host_path`
        #[prost(string, tag = "2")]
        host_path: String,
        /// `permissions`: of `r`, `w` and `m`.
        #[prost(string, tag = "3")]
        permissions: String,
    }

    /// What all pods have.
    ListPodResourcesResponse {
        /// `pod_resources`
        #[prost(message, repeated, tag = "1")]
        pod_resources: Vec<PodResources>,
    }

    /// What pods could have.
    AllocatableResourcesResponse {
        /// `devices`
        #[prost(message, repeated, tag = "1")]
        devices: Vec<ContainerDevices>,
        /// `cpu_ids`
        #[prost(int64, repeated, tag = "2")]
        cpu_ids: Vec<i64>,
        /// `memory`
        #[prost(message, repeated, tag = "3")]
        memory: Vec<ContainerMemory>,
    }

    /// What a pod has.
    PodResources {
        /// `name`
        #[prost(string, tag = "1")]
        name: String,
        /// `namespace`
        #[prost(string, tag = "2")]
        namespace: String,
        /// `containers`
        #[prost(message, repeated, tag = "3")]
        containers: Vec<ContainerResources>,
    }

    /// What a container has.
    ContainerResources {
        /// `name`
        #[prost(string, tag = "1")]
        name: String,
        /// `devices`
        #[prost(message, repeated, tag = "2")]
        devices: Vec<ContainerDevices>,
        /// `cpu_ids`
        #[prost(int64, repeated, tag = "3")]
        cpu_ids: Vec<i64>,
        /// `memory`
        #[prost(message, repeated, tag = "4")]
        memory: Vec<ContainerMemory>,
    }

    /// Memory on NUMA nodes.
    ContainerMemory {
        /// `memory_type`
        #[prost(string, tag = "1")]
        memory_type: String,
        /// `size`
        #[prost(uint64, tag = "2")]
        size: u64,
        /// `topology`
        #[prost(message, optional, tag = "3")]
        topology: Option<TopologyInfo>,
    }

    /// Devices of one resource.
    ContainerDevices {
        /// `resource_name`
        #[prost(string, tag = "1")]
        resource_name: String,
        /// `device_ids`
        #[prost(string, repeated, tag = "2")]
        device_ids: Vec<String>,
        /// `topology`
        #[prost(message, optional, tag = "3")]
        topology: Option<TopologyInfo>,
    }

    /// Which pod is meant.
    GetPodResourcesRequest {
        /// `pod_name`
        #[prost(string, tag = "1")]
        pod_name: String,
        /// `pod_namespace`
        #[prost(string, tag = "2")]
        pod_namespace: String,
    }

    /// What that pod has.
    GetPodResourcesResponse {
        /// `pod_resources`
        #[prost(message, optional, tag = "1")]
        pod_resources: Option<PodResources>,
    }
}
