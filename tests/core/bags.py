"""Recordings for tests, written with rosbags: mcap, sqlite3 and ROS 1.

As a script it makes a recording of a clip, to try the commands that read recordings:

    python tests/core/bags.py drive.mp4 drive.mcap --camera drive.json --motion odometry
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

STORES = {True: get_typestore(Stores.ROS1_NOETIC), False: get_typestore(Stores.ROS2_JAZZY)}
# rosbags has neither type of ROS 1.
for name in ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage"):
    STORES[True].register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", name))
#: From a frame with x forward, y left, z up (REP-103) to the optical frame of a camera that looks forward.
OPTICAL = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
SECOND = 1_000_000_000
#: Of the first frame, nanoseconds.
START = 1_700_000_000 * SECOND


class BagWriter:
    """Writes a recording of one file.

    Args:
        path: .mcap, .db3, .bag, or a folder of rosbag2 (no suffix), written as mcap.
        compression: "zstd" for the chunks of mcap, "message" for single messages of a folder, "bz2" or "lz4" for ROS 1.
    """

    def __init__(self, path: Path, compression: str = ""):
        self.path, self.ros1 = Path(path), Path(path).suffix == ".bag"
        self.types = STORES[self.ros1].types
        self._connections = {}
        if self.ros1:
            self._writer = Writer1(path)
            if compression:
                self._writer.set_compression(Writer1.CompressionFormat[compression.upper()])
        else:
            self._folder = Path(tempfile.mkdtemp(dir=self.path.parent)) / "bag" if self.path.suffix else self.path
            plugin = StoragePlugin.SQLITE3 if self.path.suffix == ".db3" else StoragePlugin.MCAP
            self._writer = Writer2(self._folder, version=9, storage_plugin=plugin)
            modes = {"": CompressionMode.NONE, "zstd": CompressionMode.STORAGE, "message": CompressionMode.MESSAGE}
            self._writer.set_compression(modes[compression], CompressionFormat.ZSTD)

    def __enter__(self):
        self._writer.open()
        return self

    def __exit__(self, *error):
        self._writer.close()
        if not self.ros1 and self.path.suffix:
            shutil.move(self._folder / f"{self._folder.name}{self.path.suffix}", self.path)
            shutil.rmtree(self._folder.parent)

    def write(self, topic, message, time):
        """Write a message of the type of its class; `time` is when it was recorded, nanoseconds."""
        kind = message.__msgtype__
        store = STORES[self.ros1]
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=store)
        serialize = store.serialize_ros1 if self.ros1 else store.serialize_cdr
        self._writer.write(self._connections[topic], time, bytes(serialize(message, kind)))

    def make(self, kind, **fields):
        """A message; `kind` is "sensor_msgs/Image"."""
        package, name = kind.split("/")
        return self.types[f"{package}/msg/{name}"](**fields)

    def header(self, stamp, frame):
        time = self.make("builtin_interfaces/Time", sec=stamp // SECOND, nanosec=stamp % SECOND)
        sequence = {"seq": 0} if self.ros1 else {}
        return self.make("std_msgs/Header", stamp=time, frame_id=frame, **sequence)

    def image(self, topic, stamp, pixels, encoding="rgb8", frame="camera", time=None):
        """A raw image [H, W] or [H, W, C] of the encoding's type."""
        data = np.ascontiguousarray(pixels)
        fields = {
            "height": data.shape[0],
            "width": data.shape[1],
            "encoding": encoding,
            "is_bigendian": 0,
            "step": data.nbytes // max(data.shape[0], 1),
            "data": data.view(np.uint8).ravel(),
        }
        message = self.make("sensor_msgs/Image", header=self.header(stamp, frame), **fields)
        self.write(topic, message, stamp if time is None else time)

    def compressed(
        self, topic, stamp, rgb, frame="camera", suffix=".jpg", form="rgb8; jpeg compressed bgr8", time=None
    ):
        data = cv2.imencode(suffix, rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
        self.compressed_bytes(topic, stamp, data, frame, form, time)

    def compressed_bytes(self, topic, stamp, data, frame="camera", form="jpeg", time=None):
        header = self.header(stamp, frame)
        message = self.make(
            "sensor_msgs/CompressedImage", header=header, format=form, data=np.frombuffer(data, np.uint8)
        )
        self.write(topic, message, stamp if time is None else time)

    def camera_info(self, topic, stamp, k, size, d=(), model="plumb_bob", r=None, p=None, frame="camera", **other):
        """`k` [3, 3], `size` (height, width), `r` [3, 3], `p` [3, 4]; without `p`: K without distortion."""
        p = np.hstack([k, np.zeros((3, 1))]) if p is None else p
        fields = {
            "d": np.array(d, np.float64),
            "k": np.asarray(k, np.float64).ravel(),
            "r": np.eye(3).ravel() if r is None else np.asarray(r, np.float64).ravel(),
            "p": np.asarray(p, np.float64).ravel(),
        }
        region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False} | other.pop("roi", {})
        message = self.make(
            "sensor_msgs/CameraInfo",
            header=self.header(stamp, frame),
            height=size[0],
            width=size[1],
            distortion_model=model,
            **({name.upper(): value for name, value in fields.items()} if self.ros1 else fields),
            **{"binning_x": 0, "binning_y": 0, **other},
            roi=self.make("sensor_msgs/RegionOfInterest", **region),
        )
        self.write(topic, message, stamp)

    def pose(self, matrix):
        x, y, z = (float(value) for value in matrix[:3, 3])
        point = self.make("geometry_msgs/Point", x=x, y=y, z=z)
        return self.make("geometry_msgs/Pose", position=point, orientation=self.quaternion(matrix))

    def quaternion(self, matrix):
        vector = cv2.Rodrigues(np.ascontiguousarray(matrix[:3, :3]))[0].ravel()
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle * np.sin(angle / 2) if angle > 0 else vector
        return self.make("geometry_msgs/Quaternion", x=float(x), y=float(y), z=float(z), w=float(np.cos(angle / 2)))

    def vector(self, x=0.0, y=0.0, z=0.0):
        return self.make("geometry_msgs/Vector3", x=float(x), y=float(y), z=float(z))

    def twist(self, speed):
        return self.make("geometry_msgs/Twist", linear=self.vector(speed), angular=self.vector())

    def odometry(self, topic, stamp, matrix, frame="odom", child="base_link", speed=0.0):
        """`matrix` [4, 4]: from `child` to `frame`."""
        zeros = np.zeros(36)
        message = self.make(
            "nav_msgs/Odometry",
            header=self.header(stamp, frame),
            child_frame_id=child,
            pose=self.make("geometry_msgs/PoseWithCovariance", pose=self.pose(matrix), covariance=zeros),
            twist=self.make("geometry_msgs/TwistWithCovariance", twist=self.twist(speed), covariance=zeros),
        )
        self.write(topic, message, stamp)

    def pose_stamped(self, topic, stamp, matrix, frame="map"):
        header = self.header(stamp, frame)
        self.write(topic, self.make("geometry_msgs/PoseStamped", header=header, pose=self.pose(matrix)), stamp)

    def twist_stamped(self, topic, stamp, speed, frame="base_link"):
        header = self.header(stamp, frame)
        self.write(topic, self.make("geometry_msgs/TwistStamped", header=header, twist=self.twist(speed)), stamp)

    def nav_sat_fix(self, topic, stamp, latitude, longitude):
        status = self.make("sensor_msgs/NavSatStatus", status=0, service=1)
        position = {"latitude": latitude, "longitude": longitude, "altitude": 0.0}
        covariance = {"position_covariance": np.zeros(9), "position_covariance_type": 0}
        header = self.header(stamp, "gps")
        self.write(
            topic, self.make("sensor_msgs/NavSatFix", header=header, status=status, **position, **covariance), stamp
        )

    def transform(self, stamp, matrix, parent, child, topic="/tf", kind="tf2_msgs/TFMessage"):
        """`matrix` [4, 4]: from `child` to `parent`."""
        translation = self.vector(*matrix[:3, 3])
        moved = self.make("geometry_msgs/Transform", translation=translation, rotation=self.quaternion(matrix))
        header = self.header(stamp, parent)
        stamped = self.make("geometry_msgs/TransformStamped", header=header, child_frame_id=child, transform=moved)
        self.write(topic, self.make(kind, transforms=[stamped]), stamp)

    def static_transform(self, matrix, parent, child, stamp=START):
        self.transform(stamp, matrix, parent, child, "/tf_static")

    def cloud(self, topic, stamp, points, frame="lidar"):
        """Points [N, 3], metres."""
        names = "xyz"
        fields = [
            self.make("sensor_msgs/PointField", name=name, offset=4 * i, datatype=7, count=1)
            for i, name in enumerate(names)
        ]
        message = self.make(
            "sensor_msgs/PointCloud2",
            header=self.header(stamp, frame),
            height=1,
            width=len(points),
            fields=fields,
            is_bigendian=False,
            point_step=12,
            row_step=12 * len(points),
            data=np.ascontiguousarray(points, np.float32).view(np.uint8).ravel(),
            is_dense=True,
        )
        self.write(topic, message, stamp)


def matrix_of(values):
    """K [3, 3] of the keys of a camera's JSON file."""
    return np.array([[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1.0]])


def write_bag(clip, out, camera, motion="odometry", lidar=None):
    """Make a recording of a clip, `data.video`: pictures as JPEG, and what its JSON file names.

    Args:
        clip: video or folder of frames.
        out: see `BagWriter`.
        camera: the JSON file. Its depth is written as that of a depth camera at the same place, its speed as TwistStamped.
        motion: how poses are written. "odometry": as Odometry of base_link, which is on the ground below the camera, with
            the camera in /tf_static. "tf": as transforms of the camera in /tf.
        lidar: folder of depth files, written as PointCloud2 of a LiDAR on the roof.
    """
    from fadepth_core.common.pinhole import unproject
    from fadepth_core.data.frames import Frames
    from fadepth_core.data.images import read_depth

    values = json.loads(Path(camera).read_text())

    def column(key):
        return np.loadtxt(Path(camera).parent / values[key]) if isinstance(values.get(key), str) else None

    frames = Frames(clip)
    poses, times, speeds = column("poses"), column("times"), column("speed")
    k = matrix_of(values)
    mount = np.linalg.inv(OPTICAL)  # from the camera to base_link
    mount[:3, 3] = [0.6, 0.05, 1.65]
    roof = np.eye(4)  # from the LiDAR to base_link
    roof[:3, 3] = [0.3, 0.0, 1.73]
    with BagWriter(out) as bag:
        if motion == "odometry" and (poses is not None or lidar):
            bag.static_transform(mount, "base_link", "camera_optical")
            bag.static_transform(roof, "base_link", "lidar")
        for number, (_, rgb) in enumerate(frames):
            stamp = START + round((times[number] if times is not None else number / values["fps"]) * SECOND)
            size = rgb.shape[:2]
            bag.camera_info("/camera/camera_info", stamp, k, size, frame="camera_optical")
            bag.compressed("/camera/image_raw/compressed", stamp, rgb, "camera_optical")
            if poses is not None:
                pose = np.vstack([poses[number].reshape(3, 4), [0, 0, 0, 1]])
                if motion == "odometry":
                    bag.odometry("/odom", stamp, mount @ pose @ np.linalg.inv(mount))
                else:
                    bag.transform(stamp, pose, "map", "camera_optical")
            if "speed" in values:
                bag.twist_stamped("/speed", stamp, values["speed"] if speeds is None else speeds[number])
            measured = Path(lidar or "", f"{number:06d}.png")
            if lidar and measured.is_file():
                depth = read_depth(measured)
                to_lidar = np.linalg.inv(roof) @ mount
                points = unproject(depth, k)[depth > 0] @ to_lidar[:3, :3].T + to_lidar[:3, 3]
                bag.cloud("/points", stamp, points)
            measured = Path(camera).parent / values.get("depth", "none") / f"{number:06d}.png"
            if measured.is_file():
                millimetres = np.round(1000 * read_depth(measured)).astype(np.uint16)
                bag.camera_info("/depth/camera_info", stamp, k, size, frame="camera_optical")
                bag.image("/depth/image_raw", stamp, millimetres, "16UC1", "camera_optical")


def main():
    parser = argparse.ArgumentParser(description=write_bag.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--camera", type=Path, required=True)
    parser.add_argument("--motion", choices=("odometry", "tf"), default="odometry")
    parser.add_argument("--lidar", type=Path)
    args = parser.parse_args()
    write_bag(args.clip, args.out, args.camera, args.motion, args.lidar)


if __name__ == "__main__":
    main()
