"""What Nav2's lifecycle manager does with a node, through real services: transitions in its order, and the bond.

The package bond has no wheel. A stand-in has another type in the place of bond/msg/Status: the bytes on the topic are the same.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.clock import Clock
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from cards import PATIENCE, SIZE
from fadepth_core.runtime.engine import EngineError
from fadepth_ros.heartbeat import LONGEST_STALL, Heartbeat
from fadepth_ros.node import DepthNode
from fakes import EngineLoader, FakeEngine

typesys = pytest.importorskip("rosbags.typesys")
#: Reads messages of the package bond.
BOND = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
BOND.register(
    typesys.get_types_from_msg(
        "std_msgs/Header header\nstring id\nstring instance_id\nbool active\n"
        "float32 heartbeat_timeout\nfloat32 heartbeat_period\n",
        "bond/msg/Status",
    )
)

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
UNCONFIGURED, INACTIVE = State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE
ACTIVE, FINALIZED = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_FINALIZED


class Manager:
    """Calls a node's services as nav2_lifecycle_manager does, and hears its bond.

    Attributes:
        beats: (name, instance, active) of each heartbeat.
    """

    def __init__(self, robot):
        self._robot = robot
        self._change = robot.node.create_client(ChangeState, "depth/change_state")
        self._get = robot.node.create_client(GetState, "depth/get_state")
        assert self._change.wait_for_service(PATIENCE)
        assert self._get.wait_for_service(PATIENCE)
        self.beats = []
        robot.node.create_subscription(Header, "bond", self._on_beat, QoSProfile(depth=100), raw=True)

    def _on_beat(self, raw):
        status = BOND.deserialize_cdr(raw, "bond/msg/Status")
        assert status.heartbeat_period == pytest.approx(0.05)
        self.beats.append((status.id, status.instance_id, status.active))

    def _call(self, client, request):
        future = client.call_async(request)
        self._robot.wait_for(future.done)
        return future.result()

    @property
    def state(self):
        return self._call(self._get, GetState.Request()).current_state.id

    def change(self, transition):
        """Whether the node has made the transition."""
        return self._call(self._change, ChangeState.Request(transition=Transition(id=transition))).success

    def wait_for_beat(self, active):
        """The instance of the next heartbeat of this kind."""
        self.beats.clear()
        self._robot.wait_for(lambda: any(beat[2] == active for beat in self.beats))
        return next(instance for name, instance, beat in self.beats if beat == active and name == "depth")


@pytest.fixture
def bond_package(tmp_path):
    (tmp_path / "bond" / "msg").mkdir(parents=True)
    (tmp_path / "bond" / "msg" / "__init__.py").write_text("from std_msgs.msg import Header as Status\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_the_node_follows_the_manager_through_all_states(start_robot, bond_package):
    robot = start_robot(
        "-p", "autostart:=false", "-p", "bond_heartbeat_period:=0.05", "-p", f"camera_size:={list(SIZE)}",
        environment=bond_package,
    )  # fmt: skip
    manager, instances = Manager(robot), set()
    for _ in range(2):  # bring-up, reset, bring-up
        assert manager.change(CONFIGURE)
        assert manager.state == INACTIVE
        assert "depth runs on" in robot.process.log, "the engine is loaded"
        for _ in range(2):  # pause and resume
            assert manager.change(ACTIVATE)
            assert manager.state == ACTIVE
            instances.add(manager.wait_for_beat(active=True))
            assert not manager.change(CONFIGURE), "does not fit"
            assert manager.change(DEACTIVATE)
            assert manager.state == INACTIVE
            robot.wait_for(lambda: not manager.beats[-1][2])
        assert manager.change(CLEANUP)
        assert manager.state == UNCONFIGURED
        for transition in (ACTIVATE, DEACTIVATE, CLEANUP):
            assert not manager.change(transition), "does not fit"
    assert len(instances) == 4, "each activation has its own bond"
    assert manager.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert manager.state == FINALIZED


def test_without_the_package_bond_a_wanted_heartbeat_fails_to_configure(start_robot):
    robot = start_robot("-p", "autostart:=false", "-p", "bond_heartbeat_period:=0.1")
    manager = Manager(robot)
    assert not manager.change(CONFIGURE)
    assert manager.state == UNCONFIGURED
    robot.wait_for(lambda: "cannot configure: bond_heartbeat_period needs the ROS package bond" in robot.process.log)


class FakeNode:
    """A node, its context and its publisher in one."""

    context = property(lambda self: self)
    ok = staticmethod(lambda: True)

    def __init__(self):
        self.published = []

    def create_publisher(self, *arguments):
        return self

    def get_name(self):
        return "depth"

    def get_clock(self):
        return Clock()

    def publish(self, raw):
        self.published.append(BOND.deserialize_cdr(raw, "bond/msg/Status").active)


@pytest.mark.parametrize(("stall", "beats"), [(LONGEST_STALL / 2, True), (2 * LONGEST_STALL, False)])
def test_the_heartbeat_goes_on_while_an_engine_is_built_and_stops_if_the_node_hangs(monkeypatch, stall, beats):
    monkeypatch.setitem(sys.modules, "bond", ModuleType("bond"))
    monkeypatch.setitem(sys.modules, "bond.msg", SimpleNamespace(Status=Header))
    node = FakeNode()
    heartbeat = Heartbeat(node, 0.01, lambda: time.monotonic() - stall)
    heartbeat.start()
    end = time.monotonic() + (PATIENCE if beats else 0.1)
    while time.monotonic() < end and not node.published:
        time.sleep(0.01)
    heartbeat.stop()
    assert node.published[-1] is False
    assert (True in node.published) == beats


@pytest.fixture
def make_node():
    nodes = []

    def make(loader, **parameters):
        overrides = {"autostart": False, "camera_size": list(SIZE)} | parameters
        given = [Parameter(name, value=value) for name, value in overrides.items()]
        nodes.append(DepthNode(loader, namespace="/managed", parameter_overrides=given))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_an_engine_that_cannot_be_loaded_fails_to_configure_until_it_can(make_node, capfd):
    class SecondTime(FakeEngine):
        broken = True

        def __init__(self, *arguments):
            if SecondTime.broken:
                SecondTime.broken = False
                raise EngineError("no memory")
            super().__init__(*arguments)

    node = make_node(SecondTime)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "cannot configure: no memory" in capfd.readouterr().err
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_a_camera_that_is_too_narrow_for_the_network_fails_to_configure(make_node, capfd):
    node = make_node(EngineLoader(), camera_size=[16, 16000], crop_to_aspect=True, network_size=[256, 32])
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "cannot configure: " in capfd.readouterr().err


def test_the_engine_stays_loaded_until_clean_up(make_node):
    loader = EngineLoader()
    node = make_node(loader)
    for threads in (1, 2):
        node.trigger_configure()
        node.trigger_activate()
        node.trigger_deactivate()
        node.trigger_activate()
        node.trigger_deactivate()
        assert len(loader.engines) == 1
        node.set_parameters([Parameter("threads", value=threads)])
        node.trigger_activate()
        assert len(loader.engines) == 2, "other settings need another engine"
        node.trigger_deactivate()
        node.trigger_cleanup()
        loader.engines.clear()
