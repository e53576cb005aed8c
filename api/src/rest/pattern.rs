//! The text patterns of the API, written out: each function is one pattern, its doc is the pattern.

/// Says what [`is_gpu`] accepts.
pub(crate) const GPU_WANTED: &str = "a GPU type of a-z, 0-9 and '-', for example \"nvidia-t4\"";

/// `^[a-z0-9-]+$`
pub(crate) fn is_gpu(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Standard alphabet, padded, not empty.
pub(crate) fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty()
        && text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

/// `^\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}:\d{1,5}$`, and a real address and port.
pub(crate) fn is_endpoint(text: &str) -> bool {
    text.parse::<std::net::SocketAddrV4>()
        .is_ok_and(|address| address.port() != 0)
}

/// `^\/[^\s]*$` without `.` and `..` steps: a host path never leaves the directory it names.
pub(crate) fn is_absolute_path(text: &str) -> bool {
    text.starts_with('/')
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && !text.split('/').any(|step| step == "." || step == "..")
}

/// `^vol-[a-f0-9]+$`
pub(crate) fn is_aws_volume(text: &str) -> bool {
    text.strip_prefix("vol-").is_some_and(|id| {
        !id.is_empty()
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// `^[a-z]([-a-z0-9]*[a-z0-9])?$`, 1 to 63: names of Google disks and endpoint groups.
pub(crate) fn is_gcp_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// `^arn:{partition}:{service}:{region}:\d{12}:{resource}.+` with any AWS partition.
fn is_arn(text: &str, service: &str, with_region: bool, resource: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [arn, partition, found_service, region, account, found_resource] = parts.as_slice() else {
        return false;
    };
    let plain = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    *arn == "arn"
        && plain(partition)
        && partition.starts_with("aws")
        && *found_service == service
        && plain(region) == with_region
        && (with_region || region.is_empty())
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && found_resource
            .strip_prefix(resource)
            .is_some_and(|rest| !rest.is_empty())
}

/// `^arn:aws:elasticloadbalancing:[a-z0-9-]+:\d{12}:targetgroup\/.+`, other partitions too.
pub(crate) fn is_target_group(text: &str) -> bool {
    is_arn(text, "elasticloadbalancing", true, "targetgroup/")
}

/// `^arn:aws:iam::\d{12}:role\/.+`, other partitions too.
pub(crate) fn is_role(text: &str) -> bool {
    is_arn(text, "iam", false, "role/")
}

/// `^[-\w._()]+$`, 1 to 90.
pub(crate) fn is_resource_group(text: &str) -> bool {
    (1..=90).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'(' | b')'))
}

/// `^[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?$`, 1 to 80: Azure load balancers and their pools.
pub(crate) fn is_azure_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 80
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `^\/subscriptions\/[^/]+\/resourceGroups\/[^/]+\/providers\/{kind}\/[^/]+$`
pub(crate) fn is_azure_resource(text: &str, kind: &str) -> bool {
    let steps: Vec<&str> = text.split('/').collect();
    let [
        root,
        subscriptions,
        subscription,
        groups,
        group,
        providers,
        provider,
        resource,
        name,
    ] = steps.as_slice()
    else {
        return false;
    };
    root.is_empty()
        && *subscriptions == "subscriptions"
        && !subscription.is_empty()
        && *groups == "resourceGroups"
        && !group.is_empty()
        && *providers == "providers"
        && kind.split_once('/') == Some((*provider, *resource))
        && !name.is_empty()
}

/// Something at something, without white space.
pub(crate) fn is_email(text: &str) -> bool {
    text.split_once('@').is_some_and(|(user, host)| {
        !user.is_empty() && host.contains('.') && !host.starts_with('.') && !host.contains('@')
    }) && !text.chars().any(char::is_whitespace)
}

/// Hexadecimal digits in groups of 8-4-4-4-12.
pub(crate) fn is_uuid(text: &str) -> bool {
    let lens: Vec<usize> = text.split('-').map(str::len).collect();
    lens == [8, 4, 4, 4, 12] && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_accept_and_refuse() {
        type Pattern = fn(&str) -> bool;
        let cases: [(Pattern, &str, &str); 12] = [
            (is_gpu, "nvidia-t4", "NVIDIA T4"),
            (
                is_base64,
                "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                "no base64",
            ),
            (is_endpoint, "10.0.1.7:51820", "10.0.1.700:51820"),
            (is_absolute_path, "/var/data", "/var/../etc"),
            (is_aws_volume, "vol-0abc", "vol-XYZ"),
            (is_gcp_name, "disk-1", "disk-"),
            (
                is_target_group,
                "arn:aws-us-gov:elasticloadbalancing:us-gov-west-1:123456789012:targetgroup/a/b",
                "arn:aws:elasticloadbalancing:eu-1:12:targetgroup/a",
            ),
            (
                is_role,
                "arn:aws:iam::123456789012:role/r",
                "arn:aws:iam:eu-1:123456789012:role/r",
            ),
            (is_resource_group, "rg_(1).x", "rg/1"),
            (is_azure_name, "lb_1", "lb_"),
            (is_email, "a@b.iam.gserviceaccount.com", "a@b@c.d"),
            (is_uuid, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ];
        for (accepts, good, bad) in cases {
            assert!(accepts(good), "{good}");
            assert!(!accepts(bad), "{bad}");
            assert!(!accepts(""));
        }
        let disk = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d";
        assert!(is_azure_resource(disk, "Microsoft.Compute/disks"));
        assert!(!is_azure_resource(disk, "Microsoft.Network/virtualNetworks"));
    }
}
