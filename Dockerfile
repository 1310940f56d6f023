# The depth node on ROS 2 Jazzy, on the CPU.
#   docker build -t fadepth .
#   docker run --rm -it --network host --ipc host fadepth
FROM ros:jazzy

WORKDIR /ws
COPY package.xml src/fadepth_ros/
RUN apt-get update && rosdep update --rosdistro jazzy \
 && rosdep install --from-paths src -y --ignore-src --dependency-types exec \
 && apt-get install -y --no-install-recommends python3-pip \
 && rm -rf /var/lib/apt/lists/*
# rosdep does not know these packages. NumPy 1, because Ubuntu's OpenCV and cv_bridge are built for it.
RUN pip install --break-system-packages --no-cache-dir openvino safetensors "numpy<2"

COPY setup.py setup.cfg pyproject.toml LICENSE src/fadepth_ros/
COPY resource src/fadepth_ros/resource
COPY config src/fadepth_ros/config
COPY launch src/fadepth_ros/launch
COPY fadepth_core src/fadepth_ros/fadepth_core
COPY fadepth_ros src/fadepth_ros/fadepth_ros
RUN . /opt/ros/jazzy/setup.sh && colcon build --packages-select fadepth_ros \
 && sed -i '/^exec/i source /ws/install/setup.bash --' /ros_entrypoint.sh

# Fast DDS's default shared memory is too small for camera images.
ENV FASTRTPS_DEFAULT_PROFILES_FILE=/ws/install/fadepth_ros/share/fadepth_ros/config/fastdds.xml
CMD ["ros2", "launch", "fadepth_ros", "depth.launch.py"]
